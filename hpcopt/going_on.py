"""A run that goes on when ranks are lost: trained by one group of ranks after the other, each from the copies in memory
that the one before it has left (``hpcopt.elastic``).
"""

import argparse
import os
import sys
import time
from typing import NoReturn

from hpcopt.comm.launch import hand_over_output, launch_from, leave_exit_code
from hpcopt.comm.links import LostRankError
from hpcopt.comm.world import World
from hpcopt.elastic.company import Company, ExpelledError
from hpcopt.elastic.copies import Copies, RegroupSignal
from hpcopt.elastic.keeper import EXPELLED, keep
from hpcopt.elastic.membership import Membership
from hpcopt.errors import EXIT_PEER, HpcoptError, JobError, PeerError, exit_code_of
from hpcopt.job import Job
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.ending import Ending
from hpcopt.trainer.run import RunDirectory
from hpcopt.trainer.signals import StopSignals
from hpcopt.training import run_directory, train


def train_elastic(job: Job, options: argparse.Namespace, signals: StopSignals, ending: Ending) -> int:
    """Run the job in whatever groups of ranks there are; give the exit code. The calling process becomes the keeper of
    the rank, which is forked.
    """
    launch, run = launch_from(), job.run
    ending.abort = _end_alone
    if launch.size < run.min_ranks:
        raise JobError(f"[run] min_ranks = {run.min_ranks}, but {launch.size} ranks were started").everywhere()
    membership = None if run.membership is None else Membership.of(run.membership)
    if membership is not None and launch.size < membership.most:
        raise JobError(
            f"[run] membership: {membership.most} ranks were in that run, and {launch.size} are started: "
            f"mpirun -n {membership.most} hpcopt train ..."
        ).everywhere()
    directory = RunDirectory(run_directory(job, options))
    begun_s = time.monotonic()
    kept = keep()
    if kept.exit_code is not None:
        _end_alone(kept.exit_code)  # of this place: the job's is left by its ranks

    def step() -> int:
        saved = [] if options.fresh else Checkpoints(directory.checkpoints, run.keep_checkpoints).steps()
        return max(saved, default=0) if copies.step is None else copies.step

    try:
        company = Company(
            directory.path.parent / f".{directory.path.name}.ranks",
            slot=launch.rank,
            life=kept.life,
            slots=launch.size,
            back_s=run.rejoin_s,
            ranks=lambda: None if membership is None else membership.ranks_after(step()),
            joined=kept.joined,
        )
    except OSError as error:
        raise JobError(
            f"ranks cannot find each other beside {directory.path} ({error.strerror}): name a writable --run-dir"
        ) from None
    if membership is not None:
        company.links.left_out = membership.absent_in
    copies = Copies(
        run.copy_every,
        run.buddies,
        membership=membership,
        newcomers=lambda: bool(company.newcomers),
        begun_s=begun_s,
    )
    ending.abort = lambda exit_code: _end_all(company, exit_code)
    while (world := _group(company)) is not None:
        try:
            copies.news = next(filter(None, world.gather_text(company.news)), "")  # who has just come knows none
            options.fresh = options.fresh and kept.life == 0 and copies.step is None  # what has begun is gone on with
            copies.recover(world)
            exit_code = train(job, world, options, signals, copies)
            world.barrier()
        except RegroupSignal:
            continue
        except Exception as error:
            if company.links.broken:  # whatever it is that a lost rank led to here
                continue
            if isinstance(error, HpcoptError) and error.on_every_rank and world.rank == 0:
                company.end(exit_code_of(error))
            raise
        if world.rank == 0:
            leave_exit_code(exit_code)  # that of the first place may be lost
            company.end(exit_code)
        return exit_code
    assert company.over is not None
    return company.over


def _group(company: Company) -> World | None:
    """The next group's world; None at the end of the run."""
    while True:
        try:
            return company.form()
        except LostRankError:
            continue
        except ExpelledError as error:
            print(f"hpcopt: {error}; it tries to come back", file=sys.stderr, flush=True)
            os._exit(EXPELLED)
        except PeerError as error:  # in no group, it cannot end the others
            print(f"hpcopt: {error}", file=sys.stderr)
            _end_alone(EXIT_PEER)


def _end_all(company: Company, exit_code: int) -> NoReturn:
    company.end(exit_code)
    _end_alone(exit_code)


def _end_alone(exit_code: int) -> NoReturn:
    hand_over_output()
    os._exit(exit_code)
