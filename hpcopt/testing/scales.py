"""A transport that weighs what passes through it, so that what ranks record as sent can be held against it."""

from torch import Tensor

from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.traffic import Collective, least_bytes
from hpcopt.comm.transport import Op, Request, Transport


class Scales(StagedTransport):
    """Another transport, with everything that is split or duplicated from it. It shares no memory: all goes by messages
    and collectives.
    """

    def __init__(self, inner: Transport, family: list["Scales"] | None = None) -> None:
        """Weigh from here on."""
        super().__init__(inner, away=lambda x: False)
        self._carried_bytes = 0
        self._family = [] if family is None else family  # one count each: they may be used in different threads
        self._family.append(self)

    def lap(self) -> int:
        """Bytes that this rank has given to any of the family since the last lap, as ``Traffic`` counts them."""
        carried_bytes = 0
        for member in self._family:
            carried_bytes += member._carried_bytes
            member._carried_bytes = 0
        return carried_bytes

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        self._carried_bytes += x.numel() * x.element_size()
        return super().send(x, to, tag)

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        self._weigh("all_reduce", x)
        super().all_reduce(x, op)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        self._weigh("broadcast", x, root)
        super().broadcast(x, root)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._weigh("all_gather", x)
        super().all_gather(x, out)

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        self._weigh("all_to_all", x)
        super().all_to_all(x, out)

    def split(self, color: int, key: int) -> "Scales":
        return Scales(self.inner.split(color, key), self._family)

    def duplicate(self) -> "Scales":
        return Scales(self.inner.duplicate(), self._family)

    def _weigh(self, collective: Collective, x: Tensor, root: int = 0) -> None:
        tensor_bytes = x.numel() * x.element_size()
        self._carried_bytes += least_bytes(collective, tensor_bytes, self.size, root=self.rank == root)
