"""A word that reaches every rank without their meeting: one rank gives it, the others see it when they next look.

For training without lock-step, where nothing is summed after a step. Every rank keeps a receive open from each other
one; to look is to ask P - 1 requests whether they are done. At the end all ranks close the notice, which brings each
open receive its message, so that none is left under way.
"""

import torch

from hpcopt.comm.transport import Request, Transport

GIVEN, CLOSED = 1, 0


class Notice:
    """The word, on one rank."""

    def __init__(self, transport: Transport) -> None:
        """Take a transport of its own, whose messages meet nobody else's.

        Raises:
            UnsupportedError: the transport has no messages between two ranks.
        """
        self._transport = transport
        self._others = [rank for rank in range(transport.size) if rank != transport.rank]
        self._words = [torch.full((1,), CLOSED) for _ in self._others]
        self._open = [transport.receive(word, rank) for word, rank in zip(self._words, self._others, strict=True)]
        self._sends: list[Request] = []
        self._seen = False

    def give(self) -> None:
        """Tell all ranks, this one included. Costs P - 1 messages of 8 bytes, the first time."""
        self._seen = True
        self._send(GIVEN)

    @property
    def seen(self) -> bool:
        """Whether any rank has given it, as far as is known here by now. Waits for nobody."""
        if not self._seen:
            self._seen = any(
                request.done() and int(word) == GIVEN for request, word in zip(self._open, self._words, strict=True)
            )
        return self._seen

    def close(self) -> None:
        """Leave nothing under way. Collective: P - 1 messages of 8 bytes from each rank that has not given it."""
        self._send(CLOSED)
        for request in (*self._open, *self._sends):
            request.wait()

    def _send(self, word: int) -> None:
        if not self._sends:
            self._sends = [self._transport.send(torch.full((1,), word), rank) for rank in self._others]
