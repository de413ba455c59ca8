"""Loops are compiled before anything is timed: by one rank of a host, and the others load what it left in the cache."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpcopt import kernels
from hpcopt.comm.world import World

COMPILING = "hpcopt: compiling loops for this machine, which later starts load"
LOADING = "hpcopt: loading loops and running each once"
MOMENT_S = 2.0  # of silence, that loading from the cache takes


def compile_once(world: World, run: Callable[[], object]) -> None:
    """Let the first rank of each host run what compiles loops at its first run, then the others. Collective.

    Rank 0 says on standard error what takes longer than a moment: compiling, or loading.

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
    done, before = threading.Event(), kernels.compiled()

    def say() -> None:
        said = ""
        while said != COMPILING and not done.wait(MOMENT_S):
            now = COMPILING if kernels.compiled() > before else LOADING
            if now != said:
                print(said := now, file=sys.stderr, flush=True)

    if speaks:
        threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        done.set()
