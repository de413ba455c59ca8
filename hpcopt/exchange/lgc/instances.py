"""The two instances of LGC: what travels in place of the values at the shared places, and what is learnt for it.

All vectors are float32, in units of a scale that the ranks share. Those of all ranks, (P, k), are at hand while the
autoencoder learns, the same on all ranks; later a rank has its own, (k,), and what others send.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from hpcopt.comm import dense
from hpcopt.comm.transport import Transport
from hpcopt.compress.codec import float_array
from hpcopt.compress.topk import largest
from hpcopt.exchange.lgc.autoencoder import Autoencoder, code_numel

SIMILARITY = 0.1  # weight of the codes' variance over ranks in the server's loss


class Carried(NamedTuple):
    """What came of one vector.

    Attributes:
        total: of all ranks, nearly, the same bits on all of them.
        own: this rank's part of it, which it therefore no longer owes.
        error: ``|own - x|^2 / |x|^2``, the mean over the ranks, the same on all of them.
    """

    total: Tensor
    own: Tensor
    error: float


class Instance(ABC):
    """How vectors go once the autoencoder has learnt."""

    def __init__(self, ranks: int, decoders: int, seed: int) -> None:
        self.ranks, self.autoencoder = ranks, Autoencoder(decoders, seed)

    @abstractmethod
    def decoded(self, rows: Tensor, leader: int) -> tuple[Tensor, Tensor]:
        """What becomes of all ranks' vectors, (P, k), and the loss to learn by."""

    @abstractmethod
    def carry(self, transport: Transport, x: Tensor, leader: int) -> Carried:
        """Sum a vector over the ranks by codes. Collective."""

    @abstractmethod
    def planned_bytes(self, k: int, size: int, rank: int) -> int:
        """The most bytes that a rank sends in ``carry``."""

    def learn(self, rows: Tensor, leader: int) -> float:
        """One step of learning from all ranks' vectors; the error before it, as in ``Carried``."""
        with torch.enable_grad():
            decoded, loss = self.decoded(rows, leader)
            if bool(loss.isfinite()):
                self.autoencoder.learn(loss)
        return float(_errors(decoded.detach(), rows).mean())


class Ring(Instance):
    """Codes are summed on the way; one decoder makes the mean of the values from the mean of the codes.

    Loss: ``|D(mean E(x_r)) - mean x_r|^2``, and beside it ``mean |D(E(x_r)) - x_r|^2``, which error feedback lives on.
    """

    def __init__(self, ranks: int, seed: int) -> None:
        super().__init__(ranks, 1, seed)

    def decoded(self, rows: Tensor, leader: int) -> tuple[Tensor, Tensor]:
        codes, k = self.autoencoder.encode(rows), rows.shape[1]
        own = self.autoencoder.decode(codes, k)
        mean = self.autoencoder.decode(codes.mean(0), k)
        return own, (mean - rows.mean(0)).square().mean() + (own - rows).square().mean()

    def carry(self, transport: Transport, x: Tensor, leader: int) -> Carried:
        with torch.no_grad(), transport.traffic.encoding():
            code = self.autoencoder.encode(x)
            own = self.autoencoder.decode(code, x.numel())
            message = torch.cat([code, _errors(own, x).view(1)])
        dense.all_reduce(transport, message)
        message /= transport.size
        with torch.no_grad(), transport.traffic.decoding():
            total = transport.size * self.autoencoder.decode(message[:-1], x.numel())
        return Carried(total, own, float(message[-1]))

    def planned_bytes(self, k: int, size: int, rank: int) -> int:
        return dense.planned_bytes(4 * (code_numel(k) + 1), size, rank)


class Server(Instance):
    """What is common comes from one rank, as a code; every rank adds its innovation, its few largest values. A decoder
    for each rank makes its vector of the two, on all ranks alike: what a parameter server would do.

    Loss: ``mean |D_r(E(x_leader), innovation_r) - x_r|^2``, and a little of the variance of the codes over ranks.
    """

    def __init__(self, ranks: int, seed: int, innovation: float) -> None:
        super().__init__(ranks, ranks, seed)
        self._innovation = innovation

    def decoded(self, rows: Tensor, leader: int) -> tuple[Tensor, Tensor]:
        codes, k = self.autoencoder.encode(rows), rows.shape[1]
        known = torch.stack([_spread(_innovation(row, self._count(k)), k) for row in rows])
        decoded = torch.stack(
            [self.autoencoder.decode(codes[leader], k, rank, known[rank]) for rank in range(self.ranks)]
        )
        similarity = (codes - codes.mean(0)).square().mean()
        return decoded, (decoded - rows).square().mean() + SIMILARITY * similarity

    def carry(self, transport: Transport, x: Tensor, leader: int) -> Carried:
        k, size = x.numel(), transport.size
        code = torch.empty(code_numel(k))
        with torch.no_grad(), transport.traffic.encoding():
            if transport.rank == leader:
                code.copy_(self.autoencoder.encode(x))
            mine = _innovation(x, self._count(k))
        with transport.traffic.waiting():
            transport.broadcast(code, leader)
            theirs = mine.new_empty(size, mine.numel())
            transport.all_gather(mine, theirs)
        with torch.no_grad(), transport.traffic.decoding():
            parts = [self.autoencoder.decode(code, k, rank, _spread(theirs[rank], k)) for rank in range(size)]
            total = torch.stack(parts).sum(0)
        error = _errors(parts[transport.rank], x).double().view(1)
        dense.all_reduce(transport, error)
        return Carried(total, parts[transport.rank], float(error) / size)

    def planned_bytes(self, k: int, size: int, rank: int) -> int:
        innovations = 8 * self._count(k) * (size - 1)
        return 4 * code_numel(k) + innovations + dense.planned_bytes(8, size, rank)

    def _count(self, k: int) -> int:
        return min(k, max(1, round(self._innovation * k)))


def _innovation(x: Tensor, count: int) -> Tensor:
    """The largest values of x: their places, then they themselves, int32, (2 count,)."""
    places = torch.from_numpy(largest(float_array(x.contiguous()), count).astype("int32"))
    return torch.cat([places, x[places.long()].view(torch.int32)])


def _spread(innovation: Tensor, k: int) -> Tensor:
    """A vector of zeros but for an innovation."""
    places, values = innovation.chunk(2)
    return torch.zeros(k).index_copy_(0, places.long(), values.contiguous().view(torch.float32))


def _errors(decoded: Tensor, x: Tensor) -> Tensor:
    """``|decoded - x|^2 / |x|^2`` of each vector; 0 for one of zeros."""
    return (decoded - x).square().sum(-1) / x.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
