"""Messages between neighbours of a round (``hpcopt.comm.roll_call``) that count for all ranks or for none.

Each rank sends its message to some others. Its ballot is a receipt: which of the messages to it have come. The teller
counts a rank as present if all others who are present have what it has sent them; a message counts if both its ends are
present. So no rank is counted by one neighbour and missed by another, whatever was under way when one was lost.

Where two ranks do not have each other's messages, the one of whom fewer others lack one counts, or the lower of equals.

Cost of a round with k neighbours: ``alpha + k n / B`` for messages of n bytes, and ``2 alpha`` for receipts of a byte a
rank.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from hpcopt.comm.links import Links
from hpcopt.comm.roll_call import RollCall, Round, framed

MESSAGE = -14  # of this module alone: no caller's tag is negative
OPEN, HERE, GONE = 0, 1, 2  # of a message, in a receipt


class Receipts(RollCall):
    """The rounds of one group of ranks."""

    def __init__(self, links: Links, members: tuple[str, ...], channel: int, patience_s: float | None = None) -> None:
        """Begin; arguments as of ``RollCall``."""
        super().__init__(links, members, channel, _nothing, patience_s)
        self._inbox = [deque[np.ndarray]() for _ in members]

    def exchange(
        self, number: int, message: np.ndarray, targets: Sequence[int], sources: Sequence[int]
    ) -> tuple[Round, dict[int, np.ndarray], int]:
        """Send a message to the targets, and receive those of the sources. Collective: over those who are there.

        Args:
            number: of the round, above 0; rising, and the same on all ranks.
            message: uint8, of any length.
            targets, sources: ranks; this one is a source of each of its targets, and the reverse.

        Returns:
            The round; messages of the sources that were present in it, by rank, also where this rank was not; and the
            bytes that this rank has sent since the round before.

        Raises:
            LostRankError: see ``RollCall.hold``.
        """
        if not self.decided_after(number - 1):
            body = framed([number], message)
            for to in targets:
                self._send(to, MESSAGE, body)
        found: dict[int, np.ndarray] = {}
        newest: np.ndarray | None = None

        def receipt() -> np.ndarray | None:
            nonlocal newest
            self._look(number, sources, found)
            states = np.full(len(self._members), HERE, np.uint8)
            for source in set(sources) - set(found):
                states[source] = OPEN if self._is_there(source) else GONE
            if self.patience_s is None and OPEN in states:
                return None  # it would change nothing: nobody decides before all have come
            if newest is None or (states != newest).any():
                newest = states
            return newest

        decided, sent_bytes = self.hold(number, receipt)
        awaited = [source for source in sources if source in decided.present]
        with self._links.news:  # a rank that is late has what was sent to it, but for what is lost with its sender
            self._look(number, sources, found)
            while not self._gone_by() and any(s not in found and self._is_there(s) for s in awaited):
                self._links.news.wait()
                self._look(number, sources, found)
        return decided, {source: found[source] for source in awaited if source in found}, sent_bytes

    def _look(self, number: int, sources: Sequence[int], found: dict[int, np.ndarray]) -> None:
        """Find this round's messages among those that have come, and drop those of earlier ones, which were late."""
        for place, body in self._links.taken([self._place(name, MESSAGE) for name in self._members]):
            self._inbox[self._members.index(place[2])].append(body)
        for source, waiting in enumerate(self._inbox):
            while waiting and _number(waiting[0]) < number:
                waiting.popleft()
            if waiting and source in sources and _number(waiting[0]) == number:
                found[source] = waiting.popleft()[8:]

    def _complete(self, ballots: Mapping[int, np.ndarray], there: Collection[int]) -> bool:
        ranks = sorted(there)
        return super()._complete(ballots, there) and not any((ballots[rank][ranks] == OPEN).any() for rank in ranks)

    def _counting(self, ballots: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        ranks = list(ballots)
        lacks = {rank: [other for other in ranks if ballots[rank][other] != HERE] for rank in ranks}
        lacking = {rank: sum(rank in theirs for theirs in lacks.values()) for rank in ranks}
        chosen: list[int] = []
        for rank in sorted(ranks, key=lambda rank: (lacking[rank], rank)):
            if not any(other in lacks[rank] or rank in lacks[other] for other in chosen):
                chosen.append(rank)
        return {rank: ballots[rank] for rank in sorted(chosen)}


def _nothing(_number: int, _ballots: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.empty(0, np.uint8)


def _number(body: np.ndarray) -> int:
    return int(body[:8].view(np.int64)[0])
