"""One run of a job: from a world of ranks to an exit code."""

import argparse
import gc
from pathlib import Path

from hpcopt.build import build
from hpcopt.comm.world import World
from hpcopt.elastic.copies import Copies
from hpcopt.errors import JobError, printable
from hpcopt.job import Job
from hpcopt.kept_memory import keep_memory
from hpcopt.plugins import LOADED
from hpcopt.prepare import prepare_if_missing
from hpcopt.shapes.workload import Workload
from hpcopt.trainer.loop import Trainer
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.services import Services, open_directory
from hpcopt.trainer.signals import StopSignals


def train(
    job: Job,
    world: World,
    options: argparse.Namespace,
    signals: StopSignals,
    copies: Copies | None = None,
) -> int:
    """Run the job; give the exit code. Collective.

    Args:
        job, world, options, signals: what, where, how, and until when.
        copies: in memory; where these ranks have recovered one, the run goes on from it.
    """
    signals.listen_for(job.run.requeue_signal)
    job.check_ranks(world.size)
    recovered = copies is not None and bool(copies.steps())
    fresh = options.fresh and not recovered
    directory = open_directory(run_directory(job, options), world, fresh=fresh, again=recovered)
    prepare_if_missing(job.workload.folder, world)
    with Services(job.run, world, directory, job.run.name) as services:
        say_plugins(services.progress)
        built = build(job, world, services.device, verify=not recovered)
        check_target(job, built.workload)
        services.progress.begin(built.steps)
        workload, plain = built.workload, job.as_dict()
        position = services.resume(
            built.solver, plain, required=options.resume, workload=(workload, job.workload), copies=copies
        )
        trainer = Trainer(
            run=job.run,
            context=built.context,
            workload=workload,
            solver=built.solver,
            checkpoints=services.checkpoints,
            recorder=services.record(
                position,
                built.context.clock,
                plain,
                job.as_toml(),
                "formed anew" if recovered else "resumed",
                present=None if copies is None else copies.present,
            ),
            progress=services.progress,
            position=position,
            signals=signals,
            copies=copies,
        )
        if not recovered:  # a second's hundredth that the ranks which were left need not wait for
            gc.collect()
            gc.freeze()
        gc.enable()
        keep_memory()
        try:
            too_few = copies is not None and world.size < job.run.min_ranks
            return (trainer.leave() if too_few else trainer.train()).exit_code
        finally:
            gc.unfreeze()  # for a caller that goes on: at the interpreter's end what is frozen would never be freed


def run_directory(job: Job, options: argparse.Namespace) -> Path:
    """Where the run writes."""
    return options.run_dir or Path("runs") / job.run.name


def say_plugins(progress: Progress) -> None:
    """Tell of what a job brought along, and of what that printed while it was imported."""
    for plugin in LOADED.values():
        version = f", {plugin.distribution} {plugin.version}" if plugin.distribution else ""
        progress.say(f"plugged in: {plugin.name} from {plugin.file}{version}")
        if plugin.printed:
            progress.say(f"warning: {plugin.name} printed while it was imported: {printable(plugin.printed.strip())}")


def check_target(job: Job, workload: Workload) -> None:
    """Raise JobError, on all ranks, if the run should stop at a score that there is not."""
    target = job.run.stop_at
    if target is not None and target.metric not in workload.scores:
        known = " and ".join(workload.scores)
        raise JobError(f"[run] stop_at.metric = {target.metric!r}, but there is {known}").everywhere()
