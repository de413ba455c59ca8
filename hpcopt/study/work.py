"""One rank at work on the points of a study, and all ranks of a command."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hpcopt.comm.world import World, alone
from hpcopt.study.claims import ROW
from hpcopt.study.folder import Folder
from hpcopt.study.grid import Point
from hpcopt.study.parts import Hands
from hpcopt.study.study_file import Study
from hpcopt.study.table import DONE, FAILED, LEFT, Row, Table
from hpcopt.study.trials import Trial, said, trial_of
from hpcopt.trainer.signals import StopSignals

TAKE_S = 0.5  # of work is taken at once, where points are shorter
MOST_TAKEN = 256
TRIES = 2
SAY_S = 10.0


def run_study(
    study: Study,
    path: Path | str,
    world: World | None = None,
    signals: StopSignals | None = None,
    *,
    fresh: bool = False,
    again: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Table:
    """Do the points of a study that are left. Collective: a few barriers; nothing travels while points are done.

    Others may do points of the same study at the same time, on other machines too; a point is done once.

    Args:
        study: what is done.
        path: of its folder.
        world: the ranks; by default this process alone.
        signals: told to stop by one of them, a rank ends its point, or leaves it, and returns.
        fresh: begin anew; a folder that is there is moved aside.
        again: do points that failed again.
        say: is told how it goes, on rank 0.

    Returns:
        The table as it is on disk after this rank has come to its end; rows are left where others are at work, or
        after a signal.

    Raises:
        JobError: on all ranks: a point is no job, the function cannot be imported, or the folder is another study's.
        DataError: the folder cannot be written.
    """
    world, signals = world or alone(), signals or _Unheard()
    folder = Folder(Path(path))
    with world.together():
        trial = trial_of(study, folder, world, signals)
    prepare(require_jobs(study, world, say), world)
    with world.together():
        if world.rank == 0:
            table = folder.begin(study, fresh=fresh, again=again)
            left = int((table.status == LEFT).sum())
            say(f"{study.name}: {len(table):,} points, {left:,} left; {world.size} rank{'s' * (world.size > 1)}")
    free = 1
    while free:
        with world.together():
            points = folder.read().points  # more than before, if another command has extended the study
        with folder.join() as hands:
            work(hands, points, trial, lambda: signals.received is not None, _Telling(say, world.rank == 0))
        stopped = world.sum([signals.received is not None])[0] > 0  # waits for all
        with world.together():
            free = folder.settle() if world.rank == 0 else 0  # of processes that were killed, too
        free = 0 if stopped else int(world.sum([free])[0])
    return folder.read()


def require_jobs(study: Study, world: World, say: Callable[[str], None]) -> list[Path]:
    """Make sure that all points are jobs, each rank of its share, where they are none of a function; give the folders
    of their data. Collective.

    Raises:
        JobError: on all ranks: one is not.
    """
    left_out: list[str] = []
    folders: set[str] = set()
    with world.together():
        for point in study.points[world.rank :: world.size] if study.function is None else ():
            job = study.job(point, left_out)
            job.check_ranks(1)
            folders |= {str(job.workload.folder)} if job.workload.folder else set()
    for line in dict.fromkeys(left_out):
        say(line)
    everyones = world.gather_text("\n".join(sorted(folders)))
    return [Path(name) for name in sorted({name for part in everyones for name in part.splitlines()})]


def prepare(folders: Sequence[Path], world: World) -> None:
    """Make data sets that are missing, if hpcopt knows how. Collective."""
    if not folders:
        return
    from hpcopt.prepare import prepare_if_missing

    for folder in folders:
        prepare_if_missing(folder, world)


def work(hands: Hands, points: Sequence[Point], trial: Trial, stopped: Callable[[], bool], tell: "_Telling") -> None:
    """Take points and do them until there are none, or somebody says stop."""
    take, count, spent_s = 1, 0, 0.0
    while not stopped() and (numbers := hands.claims.take(take, len(points))):
        for number in numbers:
            row = None if stopped() else attempt(trial, number, points[number])
            if row is None:
                return
            hands.done(row)
            count, spent_s = count + 1, spent_s + row.seconds
            tell(hands.claims.states)
        take = int(np.clip(TAKE_S * count / max(spent_s, 1e-9), 1, MOST_TAKEN))


def attempt(trial: Trial, number: int, point: Point) -> Row | None:
    """Do a point, once more if it fails; None if it was told to stop before the end."""
    failure = ""
    for tries in range(TRIES):
        start_s = time.perf_counter()
        try:
            results = trial(number, point, again=tries > 0)
        except (Exception, SystemExit) as error:  # of somebody's function
            failure = said(error)
        else:
            return None if results is None else Row(number, DONE, time.perf_counter() - start_s, results)
    return Row(number, FAILED, time.perf_counter() - start_s, {}, failure)


class _Unheard(StopSignals):
    """No signal is listened for: what the program does at one is its own affair."""

    def listen_for(self, name: str) -> None:
        pass


class _Telling:
    """Says now and then how many points have rows, whoever did them."""

    def __init__(self, say: Callable[[str], None], speaks: bool) -> None:
        self._say, self._speaks, self._last_s = say, speaks, time.monotonic()

    def __call__(self, states: Callable[[], np.ndarray]) -> None:
        now_s = time.monotonic()
        if self._speaks and now_s - self._last_s >= SAY_S:
            self._last_s, now = now_s, states()
            self._say(f"{(now == ROW).sum():,} of {len(now):,} points")
