"""hpcopt train [JOB.toml]: train one job, on one rank or on thousands."""

import argparse
import gc
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hpcopt
from hpcopt.any_text import print_any_text
from hpcopt.comm.launch import launch_from, leave_exit_code, machine, usable_threads
from hpcopt.errors import EXIT_DONE, HpcoptError, JobError, exit_code_of
from hpcopt.plugins import current_folder_first, provenance
from hpcopt.shipped import shipped
from hpcopt.trainer.signals import StopSignals

if TYPE_CHECKING:
    from hpcopt.build import Built
    from hpcopt.comm.world import World
    from hpcopt.job import Job
    from hpcopt.shapes.workload import Workload
    from hpcopt.store.metrics import MetricsFile
    from hpcopt.trainer.loop import Trainer
    from hpcopt.trainer.progress import Progress
    from hpcopt.trainer.resume import Position
    from hpcopt.trainer.run import RunDirectory

OWN_JOB = Path("job.toml")
HEAD_START_S = 1.0

EPILOG = """\
examples:
  hpcopt train                                  the quickstart: handwritten digits, a minute on a laptop
  mpirun -n 128 hpcopt train my.toml            a job of your own on 128 ranks
  hpcopt train --set run.epochs=2 --set solver.optimizer.lr=0.05
  hpcopt train my.toml --dry-run --ranks 1024

exit codes: 0 done; 1 a bug, with its rank's traceback; 2 bad input: the message says what to do; 3 the loss is no
longer finite; 70 another rank failed; 85 checkpointed before the end: submit the same command again; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt train",
        description="Train one job. A run directory with a checkpoint is resumed; the same command can be requeued.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "job", nargs="?", type=Path, help=f"job file (default: {OWN_JOB}, or the quickstart if there is none here)"
    )
    p.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help='change one key of the job; VALUE is TOML, or text; "off" is none, where a key may have none; a NAME '
        "of another class leaves the file's keys out that this class does not know",
    )
    p.add_argument(
        "--run-dir", type=Path, help="folder for job.toml, metrics.h5, checkpoints/, log.txt (default: runs/NAME)"
    )
    start = p.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from a checkpoint; an error if there is none")
    start.add_argument("--fresh", action="store_true", help="start over; an existing run directory is moved aside")
    p.add_argument("--dry-run", action="store_true", help="print the resolved job and its plan, and train nothing")
    p.add_argument("--ranks", type=int, help="with --dry-run: plan for this many ranks")
    p.add_argument(
        "--schema", action="store_true", help="print the JSON schema of job files, with the classes that JOB.toml names"
    )
    p.add_argument("--version", action="version", version=f"hpcopt {hpcopt.__version__}")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Train, and turn whatever goes wrong into a message and an exit code."""
    print_any_text()
    options = parser().parse_args(arguments)
    gc.disable()  # what imports make stays: looking through it again and again is a tenth of their time
    try:
        with StopSignals() as signals:  # from here on: one that comes while torch is imported must not kill the job
            return guarded(options, signals)
    finally:
        gc.unfreeze()  # for a caller that goes on: at the interpreter's end what is frozen would never be freed
        gc.enable()


def guarded(options: argparse.Namespace, signals: StopSignals) -> int:
    """Do what the options say; whatever ends it on any rank becomes a message and an exit code, for all ranks."""
    launch = launch_from()
    world: World | None = None
    try:
        check(options)
        from hpcopt.job import read_job, schema
        from hpcopt.lean_torch import keep_dynamo_out

        keep_dynamo_out()
        current_folder_first()
        if options.schema:
            if options.job:
                read_job(options.job, options.settings)  # the schema then knows what the job plugs in
            print(schema())
            return EXIT_DONE
        job = read_job(options.job or default_job(), options.settings)
        if options.dry_run:
            if launch.rank == 0:
                print(plan(job, options.ranks or launch.size))
            return EXIT_DONE

        from hpcopt.comm.world import connect

        world = connect(job.run.backend, job.run.debug)
        exit_code = train(job, world, options, signals)
    except BaseException as error:  # an exit and Ctrl-C, too: the others would wait for this rank
        exit_code = exit_code_of(error)
        agreed = isinstance(error, HpcoptError) and error.on_every_rank
        ends_all = launch.size > 1 and not agreed and not options.dry_run
        if ends_all:
            from hpcopt.comm.mpi import abort  # starts MPI, if need be: ranks that start it wait for this one

            if world is None and launch.rank > 0:
                time.sleep(HEAD_START_S)  # it may be the same on all ranks: then rank 0 says it for all
        if launch.rank == 0 or not agreed:
            print(f"hpcopt: {account(error, launch.rank)}", file=sys.stderr, flush=True)
        if ends_all:
            leave_exit_code(exit_code)
            abort(exit_code)
    if world is not None:
        world.close()
    if launch.rank == 0:
        leave_exit_code(exit_code)
    return exit_code


def check(options: argparse.Namespace) -> None:
    """Raise JobError for options that do not go together."""
    if options.ranks is None:
        return
    if not options.dry_run:
        raise JobError(
            f"--ranks goes with --dry-run; to train on so many: mpirun -n {options.ranks} hpcopt train ..."
        ).everywhere()
    if options.ranks < 1:
        raise JobError(f"--ranks {options.ranks}: a job has at least one rank").everywhere()


def account(error: BaseException, rank: int) -> str:
    """What a person is told of what ended a rank."""
    where = f"rank {rank} on {socket.gethostname()}"
    match error:
        case HpcoptError():
            return f"error{f' on {where}' if rank else ''}: {error}"
        case KeyboardInterrupt():
            return f"{where} was interrupted; what came after the last checkpoint is lost"
        case _:
            return f"{where} failed:\n{''.join(traceback.format_exception(error))}"


def default_job() -> Path:
    """The job that runs when none is named: the current folder's own, else the one that comes with the package."""
    return OWN_JOB if OWN_JOB.exists() else shipped("jobs") / "quickstart.toml"


def plan(job: "Job", ranks: int) -> str:
    """What the job would do on so many ranks, without starting any."""
    from hpcopt.build import build
    from hpcopt.comm.device import planned_device
    from hpcopt.comm.rehearsal import RehearsalTransport
    from hpcopt.comm.world import World

    world = World(RehearsalTransport(ranks))
    prepare_data(job, world)
    built = build(job, world, verify=False)
    workload, solver, batch = built.workload, built.solver, built.workload.batch
    flops = sample_flops(workload)
    least, most = batch // solver.data_size, -(-batch // solver.data_size)
    lines = {
        "ranks": f"{ranks}",
        "device": planned_device(job.run.device),
        "data": f"{_count(workload.train_samples)} training and {_count(workload.test_samples)} test samples",
        "batch": f"{batch} samples, {least}{f' or {most}' if most > least else ''} a rank",
        "steps": f"{built.steps:,}, {_count(workload.steps_per_epoch)} an epoch",
        "computation": f"{flops:.3g} operations a sample, forward and backward",
        **solver.plan(flops * most),
    }
    under = "\n" + 17 * " "
    table = "\n".join(f"  {name:<14} {text.replace(chr(10), under)}" for name, text in lines.items())
    return f"{job.as_toml()}\nplan\n{table}"


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def sample_flops(workload: "Workload") -> float:
    """Floating-point operations of one sample's matrix products and convolutions, forward and backward (which has two
    for each one forward), found by going forward once.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    batch = next(iter(workload.test_batches(0, 1)))
    training = workload.model.training
    workload.model.eval()  # batch normalisation takes no single sample otherwise
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.loss(workload.model, batch.split(len(batch))[0])
    workload.model.train(training)
    return 3.0 * float(counter.get_total_flops())


def train(job: "Job", world: "World", options: argparse.Namespace, signals: StopSignals) -> int:
    """Run the job on a world of ranks; give the exit code. Collective."""
    import torch

    from hpcopt.build import build
    from hpcopt.comm.device import device_name, use_device
    from hpcopt.comm.stall import StallWatch
    from hpcopt.trainer.progress import Progress

    signals.listen_for(job.run.requeue_signal)
    torch.set_num_threads(job.run.threads or usable_threads(world.local_size))
    job.check_ranks(world.size)
    directory = open_directory(job, world, options)
    prepare_data(job, world)
    device = use_device(world, job.run.device)
    devices = world.gather_text(device_name(device))
    watch = StallWatch(directory.path / "stalls", world.rank, world.hosts, job.run.stall_s)
    progress = Progress(directory.log, speaks=world.rank == 0, every_s=job.run.log_every_s)
    with directory, watch, progress:
        world.watch = watch
        progress.say(
            f"hpcopt {hpcopt.__version__}: {job.run.name}, {world.size} ranks on {world.nodes} hosts, "
            f"{job.run.backend}, {' and '.join(dict.fromkeys(devices))}, {torch.get_num_threads()} threads a rank, "
            f"into {directory.path}"
        )
        say_plugins(progress)
        built = build(job, world, device)
        check_target(job, built.workload)
        progress.begin(built.steps)
        trainer = make_trainer(job, built, directory, progress, devices, signals, resume=options.resume)
        gc.collect()
        gc.freeze()
        gc.enable()
        return trainer.train().exit_code


def say_plugins(progress: "Progress") -> None:
    """Tell of what a job brought along, and of what that printed while it was imported."""
    from hpcopt.plugins import LOADED

    for plugin in LOADED.values():
        version = f", {plugin.distribution} {plugin.version}" if plugin.distribution else ""
        progress.say(f"plugged in: {plugin.name} from {plugin.file}{version}")
        if plugin.printed:
            progress.say(f"warning: {plugin.name} printed while it was imported: {plugin.printed.strip()}")


def make_trainer(
    job: "Job",
    built: "Built",
    directory: "RunDirectory",
    progress: "Progress",
    devices: list[str],
    signals: StopSignals,
    *,
    resume: bool,
) -> "Trainer":
    """Restore the solver from the newest checkpoint, and open metrics.h5. Collective.

    Raises:
        JobError: ``resume``, but there is no checkpoint.
    """
    import torch

    from hpcopt.store.checkpoint import Checkpoints
    from hpcopt.store.metrics import MetricsFile
    from hpcopt.trainer.loop import Trainer
    from hpcopt.trainer.recorder import Recorder
    from hpcopt.trainer.resume import Position, restore

    world = built.context.world
    checkpoints = Checkpoints(directory.checkpoints, job.run.keep_checkpoints)
    if resume and not world.broadcast_integers(checkpoints.steps()):
        raise JobError(f"--resume, but {directory.checkpoints} has no checkpoint").everywhere()
    workload = built.workload, job.workload
    position = restore(world, checkpoints, built.solver, job.as_dict(), progress.say, workload) or Position()
    progress.say("\n".join(position.changed_plugins(provenance())))
    position.job, position.ranks, position.plugins = job.as_dict(), world.size, provenance()
    file = MetricsFile(directory.metrics)
    load = world.threads_per_core(torch.get_num_threads(), machine())
    with world.together():
        if world.rank == 0:
            directory.write_job(job.as_toml())
            start_metrics(file, job, world, position, load, devices, built.context.clock.phases)
    recorder = Recorder(world, file, built.context.clock, position.elapsed_s)
    return Trainer(
        run=job.run,
        context=built.context,
        workload=built.workload,
        solver=built.solver,
        checkpoints=checkpoints,
        recorder=recorder,
        progress=progress,
        position=position,
        signals=signals,
    )


def check_target(job: "Job", workload: "Workload") -> None:
    """Raise JobError, on all ranks, if the run should stop at a score that there is not."""
    target = job.run.stop_at
    if target is not None and target.metric not in workload.scores:
        known = " and ".join(workload.scores)
        raise JobError(f"[run] stop_at.metric = {target.metric!r}, but there is {known}").everywhere()


def open_directory(job: "Job", world: "World", options: argparse.Namespace) -> "RunDirectory":
    """Make the run directory, or find it again; it must be one that all ranks see. Collective."""
    from hpcopt.trainer.run import RunDirectory

    directory = RunDirectory(options.run_dir or Path("runs") / job.run.name)
    path = directory.path
    with world.together():
        if world.rank == 0:
            directory.take(fresh=options.fresh)
    with world.together():
        if not directory.log.exists():
            raise JobError(
                f"the run directory {path} is not visible here: it must be on a file system that all hosts share"
            )
        if not os.access(path, os.W_OK):
            raise JobError(f"cannot write to the run directory {path}: Permission denied")
    return directory


def prepare_data(job: "Job", world: "World") -> None:
    """Let rank 0 make a data set that hpcopt knows how to make, if it is missing. Collective."""
    from hpcopt import prepare

    folder = job.workload.folder
    with world.together():
        if world.rank == 0 and folder and not folder.exists() and folder.name in prepare.SOURCES:
            prepare.prepare(folder.name, folder.parent)


def start_metrics(
    file: "MetricsFile",
    job: "Job",
    world: "World",
    position: "Position",
    threads_per_core: float,
    devices: list[str],
    phases: Sequence[str],
) -> None:
    """Create metrics.h5, or mark a restart in it; one that was lost goes on where the checkpoint is."""
    import torch
    from mpi4py import MPI

    from hpcopt.store.metrics import software

    attributes = {
        **software(),
        "title": job.run.name,
        "config": json.dumps(job.as_dict()),
        "plugins": json.dumps(provenance()),
        "hostnames": world.hosts,
        "devices": devices,
        "mpi_library": MPI.Get_library_version().splitlines()[0].split(",")[0],
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
        "seed": job.run.seed,
        "threads_per_core": threads_per_core,
        "oversubscribed": threads_per_core > 1,
    }
    if os.path.lexists(file.path):
        file.restart(position.step, world.size, attributes, phases=phases)
    else:
        file.create(world.size, phases, attributes, step=position.step, time_s=position.elapsed_s)


def leave(exit_code: int) -> NoReturn:
    """End the process without taking the interpreter apart: for torch's modules that costs every rank 0.4 s of its
    core, which 128 ranks on a few cores feel. MPI is finalized and everything written before.
    """
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.Is_initialized() and not MPI.Is_finalized():
            MPI.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    leave(main())
