"""A solver whose ranks die when a test says so; and the processes of a run, forked from one that imports once."""

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcopt.comm.launch import without_mpi

without_mpi()

import hpcopt.going_on  # noqa: E402, F401 - before the fork, not in every process
from hpcopt.config import Config  # noqa: E402
from hpcopt.solvers.actor_critic.solver import ActorCriticConfig  # noqa: E402
from hpcopt.solvers.data_parallel import DataParallelConfig  # noqa: E402
from hpcopt.solvers.gossip import GossipConfig  # noqa: E402
from hpcopt.solvers.local.solver import LocalConfig  # noqa: E402
from hpcopt.train import leave, main  # noqa: E402
from tests.launching import PATIENCE_S, forking  # noqa: E402


class Dying(Config):
    """Of a solver whose ranks train until death.

    Attributes:
        deaths: file with a list of [place with the launcher, when, what]: after how many steps, or "first build" or
            "build" (a later one); the "rank", the "host" with its keeper, a "stop" of the rank, or a number of steps
            that others are to have done before the rank goes on. Each happens once.
    """

    deaths: Path

    def build(self, task: Any, context: Any) -> Any:
        die(self.deaths, "build" if os.environ.pop("BUILT", "") else "first build")
        os.environ["BUILT"] = "yes"
        solver = super().build(task, context)
        step = solver.step

        def step_or_die(batch: Any) -> Any:
            die(self.deaths, solver._step)
            return step(batch)

        solver.step = step_or_die
        return solver


class DyingConfig(Dying, DataParallelConfig):
    """Data parallelism."""


class DyingLocalConfig(Dying, LocalConfig):
    """Local steps."""


class DyingGossipConfig(Dying, GossipConfig):
    """Gossip."""


class DyingActorCriticConfig(Dying, ActorCriticConfig):
    """Collectors and learners."""


def die(deaths: Path, moment: int | str) -> None:
    """Die, if it is this process's time to, and has not been before."""
    for slot, when, what in json.loads(deaths.read_text(encoding="utf-8")):
        reached = deaths.with_name(f"reached-{what}")
        if what == moment:
            reached.touch()
        mark = deaths.with_name(f"dead-{slot}-{when}")
        if str(slot) == os.environ["PMI_RANK"] and when == moment and not mark.exists():
            mark.touch()
            if isinstance(what, int):
                wait_for(reached)
                continue
            process = os.getppid() if what == "host" else os.getpid()
            os.kill(process, signal.SIGSTOP if what == "stop" else signal.SIGKILL)
            time.sleep(PATIENCE_S)


def wait_for(file: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def _slot(slot: int, slots: int, arguments: list[str]) -> None:
    os.environ |= {"PMI_RANK": str(slot), "PMI_SIZE": str(slots)}
    leave(main(arguments))


@contextmanager
def started(slots: int, *arguments: str):
    """The launcher's processes of a run; killed at the end, and with them their ranks."""
    processes = forking()
    started = [processes.Process(target=_slot, args=(slot, slots, list(arguments))) for slot in range(slots)]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def run(slots: int, *arguments: str) -> list[int | None]:
    """Exit codes of a whole run, by place."""
    with started(slots, *arguments) as processes:
        for process in processes:
            process.join(PATIENCE_S)
        return [process.exitcode for process in processes]
