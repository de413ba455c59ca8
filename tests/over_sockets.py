"""Ranks in threads, over TCP: what can be lost, or late."""

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from hpcopt.comm.links import Links
from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.sockets import SocketTransport
from tests.launching import PATIENCE_S

Result = TypeVar("Result")


class Group:
    """Ranks of one group, each with connections of its own, which dies by closing them."""

    def __init__(self, size: int) -> None:
        self.links = [Links(f"{rank}.0.x", "key") for rank in range(size)]
        self._threads = ThreadPoolExecutor(2 * size)
        addresses = {link.name: link.address for link in self.links}
        for done in [self._threads.submit(link.enter, 1, tuple(addresses), addresses) for link in self.links]:
            done.result(PATIENCE_S)

    def submit(self, program: Callable[..., Result], *arguments: object) -> Future[Result]:
        return self._threads.submit(program, *arguments)

    def run(self, program: Callable[[SocketTransport], Result]) -> list[Result]:
        """What a program gives on all ranks."""
        waiting = [self.submit(lambda link: program(SocketTransport(link)), link) for link in self.links]
        return [done.result(PATIENCE_S) for done in waiting]

    def die(self, rank: int) -> None:
        self.links[rank].close()


def lose_patience(teller: RollCall, number: int, early: Collection[int]) -> None:
    """Let the time of a round be over once these ranks' ballots are there, and no sooner."""
    with teller._links.news:
        wait_until(teller, lambda: teller._complete(teller._ballots.get(number, {}), early))
        assert teller.patience_s == PATIENCE_S
        teller._first_s[number] -= PATIENCE_S
        teller._links.news.notify_all()
        wait_until(teller, lambda: teller._known >= number)


def wait_until(call: RollCall, holds: Callable[[], bool]) -> None:
    """Wait for what is to become of a roll call."""
    until_s = time.monotonic() + PATIENCE_S
    with call._links.news:
        while not holds():
            assert time.monotonic() < until_s
            call._links.news.wait(0.01)


@contextmanager
def groups() -> Iterator[Callable[[int], Group]]:
    """Makes groups, and closes them."""
    made: list[Group] = []

    def make(size: int) -> Group:
        made.append(Group(size))
        return made[-1]

    try:
        yield make
    finally:
        for group in made:
            for link in group.links:
                link.close()
