"""A process that is killed at a random moment of what it does over and over."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from tests.launching import PATIENCE_S

KILLS = int(os.environ.get("HPCOPT_KILLS", "20"))  # a test's; more find rarer moments


def kill_while(work: Callable[[], None], rng: random.Random, beside: Callable[[], None] = lambda: None) -> None:
    """Let another process repeat work; kill it at some moment of its third repetition, or about then.

    Args:
        work: called again and again in the other process, which is a copy of this one.
        rng: for the moment.
        beside: called here meanwhile.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_repeat, args=(work, theirs))
    process.start()
    theirs.close()
    try:
        for _ in range(2):
            assert ours.poll(PATIENCE_S), "the other process has hung"
            duration_s = ours.recv()
        until = time.monotonic() + rng.uniform(0, 1.2 * duration_s)
        beside()
        time.sleep(max(0.0, until - time.monotonic()))
    finally:
        process.kill()
        process.join()
        ours.close()


def _repeat(work: Callable[[], None], said: Connection) -> None:
    while True:
        start = time.monotonic()
        work()
        said.send(time.monotonic() - start)
