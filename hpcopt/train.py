"""hpcopt train [JOB.toml]: train one job, on one rank or on thousands."""

import argparse
import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import NoReturn

import hpcopt
from hpcopt.any_text import print_any_text
from hpcopt.comm.launch import launch_from
from hpcopt.errors import EXIT_DONE, JobError
from hpcopt.plugins import current_folder_first
from hpcopt.shipped import shipped
from hpcopt.trainer.ending import Ending
from hpcopt.trainer.signals import StopSignals

OWN_JOB = Path("job.toml")

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
        gc.enable()


def guarded(options: argparse.Namespace, signals: StopSignals) -> int:
    """Do what the options say; whatever ends it on any rank becomes a message and an exit code, for all ranks."""
    with Ending(alone=options.dry_run) as ending:
        ending.exit_code = run(options, signals, ending)
    ending.leave_exit_code()
    return ending.exit_code


def run(options: argparse.Namespace, signals: StopSignals, ending: Ending) -> int:
    """Do what the options say; give the exit code."""
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
        from hpcopt.plan import plan

        launch = launch_from()
        if launch.rank == 0:
            print(plan(job, options.ranks or launch.size))
        return EXIT_DONE

    if job.run.elastic:
        from hpcopt.comm.launch import without_mpi

        without_mpi()
        from hpcopt.going_on import train_elastic

        return train_elastic(job, options, signals, ending)

    from hpcopt.comm.world import connect
    from hpcopt.training import train

    ending.world = connect(job.run.backend, job.run.debug)
    return train(job, ending.world, options, signals)


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


def default_job() -> Path:
    """The job that runs when none is named: the current folder's own, else the one that comes with the package."""
    return OWN_JOB if OWN_JOB.exists() else shipped("jobs") / "quickstart.toml"


def leave(exit_code: int) -> NoReturn:
    """End the process without taking the interpreter apart: for torch's modules that costs every rank 0.4 s of its
    core, which 128 ranks on a few cores feel. MPI is finalized and everything written before. MPICH tells its launcher
    so at the exit of the C library: of a rank that were gone without it, the launcher would kill the slower ones.
    """
    finalized = False
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.Is_initialized() and not MPI.Is_finalized():
            MPI.Finalize()
        finalized = MPI.Is_finalized()
    sys.stdout.flush()
    sys.stderr.flush()
    if finalized:
        ctypes.PyDLL(None).exit(exit_code)
    os._exit(exit_code)


if __name__ == "__main__":
    leave(main())
