"""Rounds that go on over those present: each rank has a ballot, and all are told one outcome of the same ballots.

Ballots go to the **teller**, the lowest rank that is there. Once it has those of all who are there, or once its
patience with the others is over, it calls the roll: it decides whose ballots count, counts them, and tells everybody
who was present, and the outcome. A rank that comes later takes the outcome that was decided; its ballot is dropped.

If the teller is lost the next rank takes its place. All others then tell it the newest outcome that they know of, and
send it the ballots for which they have none: so an outcome that anybody acts on is everybody's, and a ballot counts for
all or for none. A thread of its own does this on every rank, whatever the rank's program is at.

The round after which somebody is lost is the last of a group: the outcome says so, and all leave after the same round.
Who is lost between two rounds breaks all other collectives of the group, but not the next round.

Cost of a round with ballots of n bytes and outcomes of m, without shards: ``2 alpha + (P - 1) (n + m) / B``, with the
teller's link as the bottleneck.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from hpcopt.comm.links import Links, LostRankError, Place
from hpcopt.errors import PeerError

# Of this module alone: no caller's tag is negative.
BALLOT, OUTCOME, REPORT = -11, -12, -13
LEFT_S = 5.0  # that an outcome which others have may take to come here, once they leave the group

Count = Callable[[int, Mapping[int, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Round:
    """What was decided.

    Attributes:
        number: of the round.
        present: ranks whose ballots count, rising.
        last: the group forms anew after it.
        outcome: of the ballots, uint8.
    """

    number: int
    present: tuple[int, ...]
    last: bool
    outcome: np.ndarray


class RollCall:
    """The rounds of one group of ranks.

    Attributes:
        absent: ranks without a ballot in the newest round here.
        over: whether the group forms anew after it.
        patience_s: seconds that a round waits for the others once the first ballot is there; None: for ever.
    """

    def __init__(
        self, links: Links, members: tuple[str, ...], channel: int, count: Count, patience_s: float | None = None
    ) -> None:
        """Begin.

        Args:
            links: to the members.
            members: names, by rank.
            channel: no other messages of the group are on it.
            count: what becomes of a round's ballots, by rank, uint8; in another thread.
            patience_s: see above.
        """
        self.absent: list[int] = []
        self.over, self.patience_s = False, patience_s
        self._links, self._members, self._count = links, members, count
        self._generation, self._channel, self._rank = links.generation, channel, members.index(links.name)
        self._places = [self._place(name, tag) for tag in (OUTCOME, REPORT, BALLOT) for name in members]
        self._rounds: dict[int, Round] = {}
        self._known = 0  # the newest round here
        self._ballots: dict[int, dict[int, np.ndarray]] = {}
        self._first_s: dict[int, float] = {}  # when a round's first ballot was there
        self._office, self._reported = 0, set[int]()
        self._since: int | None = None  # the first round that this rank decided
        self._left_s: float | None = None
        self._sent_bytes = 0
        self._failure: BaseException | None = None
        threading.Thread(target=self._serve, name="roll call", daemon=True).start()

    def hold(self, number: int, ballot: np.ndarray | Callable[[], np.ndarray | None]) -> tuple[Round, int]:
        """Take part in a round, or be told what became of it. Collective: over those who are there.

        Args:
            number: of the round, above 0; rising, and the same on all ranks.
            ballot: uint8, of one length on all ranks; or what gives it, asked again after every message, so that a
                later one replaces it: None while there is none, the same object while it has not changed.

        Returns:
            The round, and the bytes that this rank has sent since the one before.

        Raises:
            LostRankError: the others have gone on, or form anew, without the round.
        """
        links = self._links
        asked: int | None = None
        sent: np.ndarray | None = None
        while True:
            with links.news:
                if (decided := self._rounds.get(number)) is not None:
                    return decided, self._taken(decided)
                self._require(number)
                mine, teller = ballot() if callable(ballot) else ballot, self._teller()
                if mine is None or (teller == asked and mine is sent):
                    links.news.wait(0.1 if self._left_s else None)
                    continue
            self._send(teller, BALLOT, framed([number], mine))
            asked, sent = teller, mine

    def decided_after(self, number: int) -> bool:
        """Whether a round later than that is decided, though this rank has not taken part in it."""
        with self._links.news:
            return self._known > number

    def _taken(self, decided: Round) -> int:
        self.absent = [rank for rank in range(len(self._members)) if rank not in decided.present]
        self.over = decided.last
        self._links.round = decided.number
        for old in [number for number in self._rounds if number < decided.number]:
            del self._rounds[old]
        sent_bytes, self._sent_bytes = self._sent_bytes, 0
        return sent_bytes

    def _require(self, number: int) -> None:
        if self._failure is not None:
            raise PeerError(f"ballots could not be counted: {self._failure}") from self._failure
        if self._gone_by():
            raise LostRankError("the group has formed anew")
        if self._known > number:
            raise LostRankError(f"the others have gone on after round {number}, and who had its outcome is lost")
        if not (left := self._left()):
            return
        self._left_s = self._left_s or time.monotonic()
        if min(left) < number or time.monotonic() - self._left_s > LEFT_S:
            raise LostRankError("others have left the group")

    def _serve(self) -> None:
        try:
            while (duty := self._next_duty()) is not None:
                duty()
        except BaseException as failure:
            with self._links.news:
                self._failure = failure
                self._links.news.notify_all()

    def _next_duty(self) -> Callable[[], object] | None:
        """What this rank has to do for the others next; waits for it. None: nothing any more."""
        links = self._links
        with links.news:
            while not self._gone_by():
                for place, body in links.taken(self._places):
                    self._file(self._members.index(place[2]), place[3], body)
                teller = self._teller()
                if teller != self._office:
                    self._office = teller
                    if teller != self._rank:
                        known = self._rounds.get(self._known)
                        return partial(self._send, teller, REPORT, b"" if known is None else self._written(known))
                duty, rest_s = self._tellers_duty() if teller == self._rank else (None, None)
                if duty is not None:
                    return duty
                links.news.wait(rest_s)
            return None

    def _tellers_duty(self) -> tuple[Callable[[], object] | None, float | None]:
        """What the teller has to do now, or the seconds until it may have something to."""
        there = {rank for rank in range(len(self._members)) if self._is_there(rank)}
        if self._office and not there <= self._reported | {self._rank}:
            return None, None
        if not self._ballots:
            return None, None
        number = min(self._ballots)
        ballots = self._ballots[number]
        if number <= self._known:  # whom the teller before has not told
            del self._ballots[number]
            known = self._rounds.get(number, self._rounds[self._known])
            return partial(self._tell, known, set(ballots)), None
        if any(round_number < number for round_number in self._left()):
            return None, None
        by_plan = None if self._links.left_out is None else self._links.left_out(number)
        if not self._complete(ballots, there):
            if self.patience_s is None or by_plan is not None:
                return None, None
            rest_s = self._first_s[number] + self.patience_s - time.monotonic()
            if rest_s > 0:
                return None, rest_s
        del self._ballots[number]
        last = self._links.broken or len(there) < len(self._members)
        return partial(self._decide, number, ballots, by_plan or (), last), None

    def _decide(self, number: int, ballots: dict[int, np.ndarray], without: Collection[int], last: bool) -> None:
        counted = self._counting({rank: ballots[rank] for rank in sorted(ballots) if rank not in without})
        decided = Round(number, tuple(counted), last, self._count(number, counted))
        self._since = number if self._since is None else self._since
        self._tell(decided, set(range(len(self._members))))
        with self._links.news:
            self._keep(decided)

    def _complete(self, ballots: Mapping[int, np.ndarray], there: Collection[int]) -> bool:
        """Whether nothing more is to be waited for from those ranks, which are there."""
        return set(there) <= set(ballots)

    def _counting(self, ballots: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Those that count, ranks rising, of those that have come."""
        return ballots

    def _tell(self, decided: Round, ranks: set[int]) -> None:
        body = self._written(decided)
        for rank in sorted(ranks - {self._rank}):
            self._send(rank, OUTCOME, body)

    def _file(self, rank: int, tag: int, body: np.ndarray) -> None:
        """Take in a message."""
        if tag == BALLOT:
            number = int(body[:8].view(np.int64)[0])
            if self._since is None or not self._since <= number <= self._known:  # else it is late
                self._ballots.setdefault(number, {})[rank] = body[8:]
                self._first_s.setdefault(number, time.monotonic())
            return
        if tag == REPORT:
            self._reported.add(rank)
        if len(body):
            self._keep(self._read(body))

    def _keep(self, decided: Round) -> None:
        if decided.number > self._links.round:
            self._rounds[decided.number] = decided
        self._known = max(self._known, decided.number)
        self._first_s = {number: s for number, s in self._first_s.items() if number > self._known}
        self._links.news.notify_all()

    def _send(self, rank: int, tag: int, body: bytes) -> None:
        name = self._members[rank]
        if rank == self._rank:
            self._links.deliver(self._place(name, tag), np.frombuffer(body, np.uint8))
        elif self._links.post(name, body, self._channel, tag, self._generation):
            with self._links.news:
                self._sent_bytes += len(body)

    def _written(self, decided: Round) -> bytes:
        present = [int(rank in decided.present) for rank in range(len(self._members))]
        return framed([decided.number, int(decided.last), *present], decided.outcome)

    def _read(self, body: np.ndarray) -> Round:
        head = 8 * (2 + len(self._members))
        number, last, *present = body[:head].view(np.int64).tolist()
        return Round(number, tuple(np.flatnonzero(present).tolist()), bool(last), body[head:])

    def _teller(self) -> int:
        return next(rank for rank in range(len(self._members)) if self._is_there(rank))

    def _is_there(self, rank: int) -> bool:
        return rank == self._rank or self._members[rank] in self._links.by_name

    def _left(self) -> list[int]:
        """Rounds that those had been told of who left the group and are there."""
        links = self._links
        left = [links.left[name] for name in self._members if name in links.left and name in links.by_name]
        return [number for generation, number in left if generation == self._generation]

    def _gone_by(self) -> bool:
        return self._links.closed or self._links.generation != self._generation

    def _place(self, name: str, tag: int) -> Place:
        return self._generation, self._channel, name, tag


def framed(head: list[int], body: np.ndarray) -> bytes:
    """Integers of eight bytes each, and a body behind them."""
    return np.array(head, np.int64).tobytes() + body.tobytes()
