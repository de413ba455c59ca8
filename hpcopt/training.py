"""One run of a job: from a world of ranks to an exit code."""

import argparse
import gc
import json
import os
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

import hpcopt
from hpcopt.build import Built, build
from hpcopt.comm.device import device_name, use_device
from hpcopt.comm.launch import machine, usable_threads
from hpcopt.comm.stall import StallWatch
from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.job import Job
from hpcopt.plugins import LOADED, provenance
from hpcopt.prepare import prepare_if_missing
from hpcopt.shapes.workload import Workload
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.metrics import MetricsFile, software
from hpcopt.trainer.loop import Trainer
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position, restore
from hpcopt.trainer.run import RunDirectory
from hpcopt.trainer.signals import StopSignals


def train(job: Job, world: World, options: argparse.Namespace, signals: StopSignals) -> int:
    """Run the job; give the exit code. Collective."""
    signals.listen_for(job.run.requeue_signal)
    torch.set_num_threads(job.run.threads or usable_threads(world.local_size))
    job.check_ranks(world.size)
    directory = open_directory(job, world, options)
    prepare_if_missing(job.workload.folder, world)
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
        position = resume(job, built, directory, progress, required=options.resume)
        recorder = open_metrics(job, built, directory, position, devices)
        trainer = Trainer(
            run=job.run,
            context=built.context,
            workload=built.workload,
            solver=built.solver,
            checkpoints=Checkpoints(directory.checkpoints, job.run.keep_checkpoints),
            recorder=recorder,
            progress=progress,
            position=position,
            signals=signals,
        )
        gc.collect()
        gc.freeze()
        gc.enable()
        return trainer.train().exit_code


def say_plugins(progress: Progress) -> None:
    """Tell of what a job brought along, and of what that printed while it was imported."""
    for plugin in LOADED.values():
        version = f", {plugin.distribution} {plugin.version}" if plugin.distribution else ""
        progress.say(f"plugged in: {plugin.name} from {plugin.file}{version}")
        if plugin.printed:
            progress.say(f"warning: {plugin.name} printed while it was imported: {plugin.printed.strip()}")


def resume(job: Job, built: Built, directory: RunDirectory, progress: Progress, *, required: bool) -> Position:
    """Restore the solver from the newest whole checkpoint; give where the run stands. Collective.

    Raises:
        JobError: it is ``required``, but there is no checkpoint.
    """
    world, checkpoints = built.context.world, Checkpoints(directory.checkpoints, job.run.keep_checkpoints)
    if required and not world.broadcast_integers(checkpoints.steps()):
        raise JobError(f"--resume, but {directory.checkpoints} has no checkpoint").everywhere()
    workload = built.workload, job.workload
    position = restore(world, checkpoints, built.solver, job.as_dict(), progress.say, workload) or Position()
    progress.say("\n".join(position.changed_plugins(provenance())))
    position.job, position.ranks, position.plugins = job.as_dict(), world.size, provenance()
    return position


def open_metrics(job: Job, built: Built, directory: RunDirectory, position: Position, devices: list[str]) -> Recorder:
    """Write job.toml, and create metrics.h5 or mark a restart in it; one that was lost goes on where the checkpoint is.
    Collective.
    """
    world, clock, file = built.context.world, built.context.clock, MetricsFile(directory.metrics)
    threads_per_core = world.threads_per_core(torch.get_num_threads(), machine())
    with world.together():
        if world.rank == 0:
            directory.write_job(job.as_toml())
            attributes = {**attributes_of(job, world, threads_per_core), "devices": devices}
            if os.path.lexists(file.path):
                file.restart(position.step, world.size, attributes, phases=clock.phases)
            else:
                file.create(world.size, clock.phases, attributes, step=position.step, time_s=position.elapsed_s)
    return Recorder(world, file, clock, position.elapsed_s)


def attributes_of(job: Job, world: World, threads_per_core: float) -> dict[str, Any]:
    """What a run's records say of it: the job, the machine, the software and what was plugged in."""
    return {
        **software(),
        "title": job.run.name,
        "config": json.dumps(job.as_dict()),
        "plugins": json.dumps(provenance()),
        "hostnames": world.hosts,
        "mpi_library": MPI.Get_library_version().splitlines()[0].split(",")[0],
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
        "seed": job.run.seed,
        "threads_per_core": threads_per_core,
        "oversubscribed": threads_per_core > 1,
    }


def check_target(job: Job, workload: Workload) -> None:
    """Raise JobError, on all ranks, if the run should stop at a score that there is not."""
    target = job.run.stop_at
    if target is not None and target.metric not in workload.scores:
        known = " and ".join(workload.scores)
        raise JobError(f"[run] stop_at.metric = {target.metric!r}, but there is {known}").everywhere()


def open_directory(job: Job, world: World, options: argparse.Namespace) -> RunDirectory:
    """Make the run directory, or find it again; it must be one that all ranks see. Collective."""
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
