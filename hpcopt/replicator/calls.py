"""What the ranks of a replicator call, compared before each call, so that a difference is an error and not a hang.

A rank that leaves, by the end of its batches or by an error, says so in the place of its next call; a rank that is in a
call then learns who left, and why. It works as long as nothing of the user's runs between the comparison and the
collectives that it announces.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import hpcopt
from hpcopt.comm.agreement import differences
from hpcopt.comm.world import World
from hpcopt.errors import PeerError

_NOT_THE_USERS = (str(Path(hpcopt.__file__).parent), str(Path(torch.__file__).parent))


class Calls:
    """The calls of the ranks of one world.

    Attributes:
        number: of calls so far.
    """

    def __init__(self, world: World, first: int | None = None) -> None:
        """Compare the first so many calls; None: all."""
        self._world, self._first = world, first
        self.number = 0
        self._difference: str | None = None

    def agree(self, what: str) -> None:
        """Check that every rank is about to do the same. Collective: one all-gather of 16 bytes a rank.

        Raises:
            PeerError: on all ranks, now and in all calls to come: who called what, and where.
        """
        if self._difference is None and self._compares():
            said = differences(self._world.all_gather, what, _where)
            if said is not None:
                self._difference = f"call {self.number} is not the same on all ranks: {said}"
        self.number += 1
        if self._difference is not None:
            raise PeerError(self._difference).everywhere()

    @contextmanager
    def stay(self, what: str) -> Iterator[list[str]]:
        """Tell the others when this rank leaves the body, so that none of them waits for it. Collective.

        What the body puts into the list that it gets is told, too.

        Raises:
            Exception: what the body raised, on its rank.
            PeerError: on ranks that left otherwise than others.
        """
        done: list[str] = []
        try:
            yield done
        except Exception as error:
            if self._difference is None and self._compares():
                self._leave(" ".join([f"left {what}", *done, f"with {type(error).__name__}: {error}"]), error)
            raise
        self.agree(" ".join([f"the end of {what}", *done]))

    def _leave(self, what: str, error: Exception) -> None:
        """Say it; of two errors about others the one that all ranks have told of is the better."""
        try:
            self.agree(what)
        except PeerError as difference:
            if isinstance(error, PeerError):
                raise difference from error

    def _compares(self) -> bool:
        return self._world.size > 1 and (self._first is None or self.number < self._first)


def _where() -> str:
    """The innermost line of the user's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return f" at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
