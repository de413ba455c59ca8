"""What carries tensors between ranks.

An algorithm is written once against Transport. Every transport has ranks, a barrier and dense collectives;
point-to-point messages and subgroups are what MPI and loopback add. What a transport cannot do it refuses by name.

Tensors are contiguous, of any dtype with a fixed width; outside main memory ``StagedTransport`` carries them. All
methods but the point-to-point ones are collective over the transport's ranks.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor

from hpcopt.comm.receipts import Receipts
from hpcopt.comm.roll_call import Count, RollCall
from hpcopt.comm.traffic import Collective, Traffic, least_bytes
from hpcopt.errors import JobError, UnsupportedError

Op = Literal["sum", "max", "min"]
SHARED_BYTES = 4 << 20  # of shared memory, for each rank
LINE_BYTES = 64  # of a cache: what one rank writes and another reads begins with one


class Request(Protocol):
    """A message under way."""

    def wait(self) -> int:
        """Return once the message's buffer may be read (a receive) or written again (a send); give its bytes.

        Raises:
            PeerError: the message that came is not of the size that this rank expected.
        """

    def done(self) -> bool:
        """Whether ``wait`` would return, or raise, at once."""


class Sent:
    """The request of a message whose buffer may be written again at once."""

    def __init__(self, sent_bytes: int) -> None:
        self._sent_bytes = sent_bytes

    def wait(self) -> int:
        return self._sent_bytes

    def done(self) -> bool:
        return True


class SharedMemory(Protocol):
    """Memory that every rank of a transport can read, some of it each rank's own to write.

    Attributes:
        parts: that of every rank, uint8, of one length, beginning at a multiple of 64 bytes.
        plans: what this rank keeps of its way through it, for tensors that come again.
    """

    plans: dict[Any, Any]

    @property
    def parts(self) -> Sequence[Tensor]: ...
    def meet(self) -> None:
        """Return once every rank has come here; what ranks wrote before they came can then be read. Collective."""


class Transport:
    """P ranks that can reach each other.

    Attributes:
        rank: this rank, 0 to size - 1.
        size: number of ranks, P.
        traffic: this rank's counts, shared by all transports split from one.
        host_memory_only: it reads and writes tensors in main memory and no others.
        threaded: a duplicate may be used in another thread at the same time.
        imagined: there are no other ranks: this is a rehearsal.
    """

    name = "transport"
    point_to_point = False
    host_memory_only = False
    threaded = True
    imagined = False

    rank: int
    size: int
    traffic: Traffic

    def send(self, x: Tensor, to: int, tag: int = 0) -> Request:
        """Start sending x to rank ``to``; x must not change until the request is waited for."""
        self._refuse("point-to-point messages")

    def receive(self, out: Tensor, source: int, tag: int = 0, *, exact: bool = True) -> Request:
        """Start receiving into out from rank ``source`` a message of exactly its size, or, if not ``exact``, of at most
        that. Messages of one (source, tag) arrive in order.
        """
        self._refuse("point-to-point messages")

    def take(self, tag: int = 0, *, wait: bool = False) -> tuple[int, Tensor] | None:
        """Receive a message of this tag from whichever rank it has come: the rank, and the bytes, uint8. None if there
        is none yet, unless it is to ``wait`` for one. Those of one rank come in order.
        """
        self._refuse("messages from any rank")

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        """Replace x on every rank by its sum, maximum or minimum over the ranks."""
        self._refuse("all_reduce")

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        """Replace x on every rank by rank root's."""
        self._refuse("broadcast")

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        """Fill out, shape (P, *x.shape), with every rank's x, of one shape everywhere."""
        self._refuse("all_gather")

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        """Send x[i], of x with shape (P, ...), to rank i; fill out, of the same shape, with what ranks sent here."""
        self._refuse("all_to_all")

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.all_reduce(torch.zeros(1))

    def carries(self, x: Tensor) -> bool:
        """Whether collectives take x where it is."""
        return x.is_cpu or not self.host_memory_only

    def sums(self, x: Tensor) -> bool:
        """Whether its own all_reduce is the way for x, and not one of ours, by messages."""
        return not self.point_to_point

    def split(self, color: int, key: int) -> "Transport":
        """Give a transport over the ranks that named the same color, ordered by (key, rank)."""
        self._refuse("split")

    def duplicate(self) -> "Transport":
        """Give a transport over the same ranks, with counts of its own, whose messages never meet this one's: for
        another thread.
        """
        self._refuse("duplicate")

    def shared_memory(self) -> SharedMemory | None:
        """Give memory that all ranks can read, the same at every call; None if there is none."""
        return None

    def roll_call(self, count: Count, patience_s: float | None = None) -> RollCall | None:
        """Give rounds that go on over those present, see ``RollCall``; None where no rank can be absent. One of a
        transport; ranks can be in rounds of one roll call only.

        Raises:
            JobError: on all ranks: ``patience_s`` is given, and no rank can be absent.
        """
        self._require_no_patience(patience_s)
        return None

    def receipts(self, patience_s: float | None = None) -> Receipts | None:
        """As ``roll_call``, for rounds in which neighbours exchange messages."""
        self._require_no_patience(patience_s)
        return None

    def _require_no_patience(self, patience_s: float | None) -> None:
        if patience_s is not None and not self.imagined:
            raise JobError("patience_s is for [run] elastic = true: else all ranks wait for each other").everywhere()

    def abort(self, exit_code: int) -> NoReturn:
        """End every rank of the job at once."""
        raise SystemExit(exit_code)

    def close(self) -> None:
        """Leave the job in order. The transport must not be used afterwards."""

    @property
    def communicator(self) -> Any:
        """Of mpi4py, over the same ranks, for libraries that take one."""
        self._refuse("MPI communicator")

    def _count(self, collective: Collective, x: Tensor, root: int = 0) -> None:
        """Count what a collective that runs inside a library must at least send of this rank's x."""
        tensor_bytes = x.numel() * x.element_size()
        self.traffic.sent_bytes += least_bytes(collective, tensor_bytes, self.size, root=self.rank == root)

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedError(f'the {self.name} transport has no {what}; use [run] backend = "mpi"')


def wait_all(requests: Iterable[Request]) -> None:
    """Wait for every request."""
    for request in requests:
        request.wait()
