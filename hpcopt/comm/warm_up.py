"""Loops are compiled before anything is timed: by one rank of a host, and the others load what it left in the cache."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpcopt.comm.world import World

MOMENT_S = 2.0  # of silence, that loading from the cache takes


def compile_once(world: World, run: Callable[[], object]) -> None:
    """Let the first rank of each host run what compiles loops at its first run, then the others. Collective.

    Rank 0 says so on standard error if it takes longer than a moment.

    Raises:
        HpcoptError: on all ranks, what one of them raised.
    """
    with _said_after_a_moment(world.rank == 0):
        for first in (True, False):
            with world.together():
                if first == (world.local_rank == 0):
                    run()


@contextmanager
def _said_after_a_moment(speaks: bool) -> Iterator[None]:
    def say() -> None:
        print("hpcopt: compiling loops for this machine, which later starts load", file=sys.stderr, flush=True)

    timer = threading.Timer(MOMENT_S, say)
    if speaks:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
