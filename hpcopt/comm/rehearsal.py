"""One rank of P that are only imagined: for the plan of a job that is not running yet."""

from torch import Tensor

from hpcopt.comm.roll_call import Count, RollCall
from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import Op, Transport


class RehearsalTransport(Transport):
    """Collectives return at once, as if every other rank had brought the same as this one. It has no messages."""

    name = "rehearsal"
    imagined = True

    def __init__(self, size: int, rank: int = 0, traffic: Traffic | None = None, *, elastic: bool = False) -> None:
        """Imagine ranks, which may be absent if ``elastic``."""
        self.size, self.rank, self._elastic = size, rank, elastic
        self.traffic = traffic or Traffic()

    def roll_call(self, count: Count, patience_s: float | None = None) -> RollCall | None:
        return _NoRounds(patience_s) if self._elastic else None

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        if op == "sum":
            x.mul_(self.size)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        pass

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x.expand_as(out))

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x)

    def split(self, color: int, key: int) -> "RehearsalTransport":
        return RehearsalTransport(self.size, self.rank, self.traffic, elastic=self._elastic)

    def duplicate(self) -> "RehearsalTransport":
        return RehearsalTransport(self.size, self.rank, elastic=self._elastic)


class _NoRounds(RollCall):
    """What a plan knows of rounds: that there will be some."""

    def __init__(self, patience_s: float | None) -> None:
        self.absent, self.over, self.patience_s = [], False, patience_s
