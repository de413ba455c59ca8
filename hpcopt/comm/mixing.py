"""Averaging with neighbours: each round costs a few messages, whatever P is, and all ranks converge to the mean.

- ``PushSum`` on directed graphs that may change (Kempe et al. 2003; Assran et al. 2019, arXiv:1811.10792, alg. 1 and
  2): a rank splits its x and its weight w evenly between itself and its out-neighbours, and adds what it receives. The
  weights of what it sends sum to one, so ``sum x`` and ``sum w = P`` are conserved, messages under way included, and
  ``z = x / w`` tends to the mean.
- ``Metropolis`` on undirected graphs: weights that sum to one both ways, so that x itself tends to the mean.
- ``Choco`` (Koloskova et al. 2019, arXiv:1902.00340, alg. 1): the same with compressed differences. Every rank keeps a
  public copy of its x, which neighbours follow by adding the payloads: ``x_i += gamma sum_j w_ij (copy_j - copy_i)``.
  Where x holds Inf or NaN, its neighbours' x become NaN in the same round, and no copy changes.

Cost of a round with k neighbours: ``alpha + k n / B``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.comm.graphs import Graph, metropolis, sources
from hpcopt.comm.neighbours import Neighbours
from hpcopt.comm.receipts import Receipts
from hpcopt.comm.transport import Transport
from hpcopt.compress import Codec
from hpcopt.compress.finite import MOST, magnitude_bound
from hpcopt.seeds import derive


class Mixer(ABC):
    """Keeps a flat tensor near the mean over the ranks.

    Attributes:
        x: shape (n,), float32: this rank's values, changed in place.
        weight: what x must be divided by.
        step: rounds done.
    """

    def __init__(self, transport: Transport, graph: Graph, x: Tensor, neighbours: Neighbours) -> None:
        self.x, self.weight, self.step = x, 1.0, 0
        self._transport, self._graph, self._neighbours = transport, graph, neighbours

    @property
    def receipts(self) -> Receipts | None:
        """Who is present in rounds; None where all must be."""
        return self._neighbours.receipts

    def mix(self, moved: Tensor | None = None, number: int | None = None) -> bool:
        """One round. Collective: over a rank's neighbours, or over those who are there.

        Args:
            moved: what x becomes before it is mixed, if this rank is present; None: it stays.
            number: of the round, for ranks that may be absent, see ``Neighbours.round``; None: rounds are counted.

        Returns:
            Whether this rank was present; if not, nothing that it stands for has changed.
        """
        present = self._mix(self.x if moved is None else moved, self.step + 1 if number is None else number)
        self.step += 1
        return present

    @abstractmethod
    def _mix(self, moved: Tensor, number: int) -> bool:
        """One round."""

    def drain(self) -> None:
        """Take in all that is under way. Collective: over a rank's neighbours."""
        return

    def estimate(self, out: Tensor) -> Tensor:
        """Write what x stands for, ``x / weight``, to out."""
        return torch.div(self.x, self.weight, out=out)

    def planned_bytes(self, rank: int, rounds: int = 16) -> int:
        """Bytes that a rank sends in a round, on average."""
        return sum(self._message_bytes() * len(self._graph(k)[rank]) for k in range(rounds)) // rounds

    def _message_bytes(self) -> int:
        return 4 * self.x.numel()


class PushSum(Mixer):
    """Push-Sum; a message of step k is added at step k + tau, so that a slow link delays nobody until then.

    Adding at a fixed age, and not on arrival, keeps runs reproducible bit for bit. Ranks may be absent with tau = 0.
    """

    def __init__(
        self, transport: Transport, graph: Graph, x: Tensor, tau: int = 0, patience_s: float | None = None
    ) -> None:
        super().__init__(transport, graph, x, Neighbours(transport, tau, patience_s))

    def _mix(self, moved: Tensor, number: int) -> bool:
        traffic, rank = self._transport.traffic, self._transport.rank
        edges = self._graph(self.step)
        with traffic.encoding():
            message = self._message(moved, 1 / (1 + len(edges[rank])))
        heard = self._neighbours.round(number, message, edges[rank], sources(edges, rank))
        if heard.present:
            with traffic.encoding():
                torch.sub(moved, message[: self.x.numel()], alpha=len(heard.targets), out=self.x)
                self.weight -= len(heard.targets) * float(message[-2:].view(torch.float64))
            self._take_in(heard.messages)
        return heard.present

    def drain(self) -> None:
        self._take_in(self._neighbours.rest())

    def _take_in(self, messages: Sequence[tuple[int, Tensor]]) -> None:
        with self._transport.traffic.decoding():
            for _, message in messages:
                self.x.add_(message[: self.x.numel()])
                self.weight += float(message[-2:].view(torch.float64))

    def _message(self, moved: Tensor, share: float) -> Tensor:
        """A share of the values, and of the weight in the last eight bytes."""
        message = moved.new_empty(moved.numel() + 2 + moved.numel() % 2)
        torch.mul(moved, share, out=message[: moved.numel()])
        message[-2:].view(torch.float64).fill_(self.weight * share)
        return message

    def _message_bytes(self) -> int:
        return 4 * (self.x.numel() + self.x.numel() % 2 + 2)


class Metropolis(Mixer):
    """Doubly stochastic mixing."""

    def __init__(self, transport: Transport, graph: Graph, x: Tensor, patience_s: float | None = None) -> None:
        super().__init__(transport, graph, x, Neighbours(transport, patience_s=patience_s))

    def _mix(self, moved: Tensor, number: int) -> bool:
        weights = metropolis(self._graph(self.step), self._transport.rank)
        mine = moved.clone()
        heard = self._neighbours.round(number, mine, list(weights), list(weights))
        if heard.present:
            with self._transport.traffic.decoding():
                self.x.copy_(mine)
                for j, theirs in heard.messages:
                    self.x.add_(theirs.sub_(mine), alpha=weights[j])
        return heard.present


class Choco(Mixer):
    """Compressed mixing on a fixed undirected graph."""

    def __init__(
        self,
        transport: Transport,
        graph: Graph,
        x: Tensor,
        codec: Codec,
        gamma: float,
        seed: int = 0,
        patience_s: float | None = None,
    ) -> None:
        super().__init__(transport, graph, x, Neighbours(transport, patience_s=patience_s))
        self._weights = metropolis(graph(0), transport.rank)
        self._codec, self._gamma, self._seed = codec, gamma, seed
        # A neighbour's copy here is its own there, bit for bit: what one gains the other loses, and the mean stays.
        self.copies = {j: torch.zeros_like(x) for j in (transport.rank, *self._weights)}

    def _mix(self, moved: Tensor, number: int) -> bool:
        traffic, rank = self._transport.traffic, self._transport.rank
        near = list(self._weights)
        with traffic.encoding():
            seed = derive(self._seed, self.step, rank, "choco")
            payload = self._encode(moved - self.copies[rank], seed)
        heard = self._neighbours.round(number, payload, near, near, most_bytes=self._message_bytes())
        with traffic.decoding():
            mine = self._decode_add(payload, self.copies[rank]) if heard.present else None
            if mine is not None:
                self.x.copy_(moved)
            for j, theirs in heard.messages:  # whose copies are followed by who was not present, too
                copy = self._decode_add(theirs, self.copies[j])
                if mine is not None:
                    self.x.add_(copy - mine, alpha=self._gamma * self._weights[j])
        return heard.present

    def _encode(self, change: Tensor, seed: int) -> Tensor:
        """Its payload; an empty one stands for Inf or NaN, or for what the codec does not carry."""
        if float(magnitude_bound(change)) * self._codec.gain(change.numel()) > MOST:
            return change.new_empty(0, dtype=torch.uint8)
        return self._codec.encode(change, seed=seed)

    def _decode_add(self, payload: Tensor, copy: Tensor) -> Tensor:
        """Add a payload to a copy, and give the copy; NaN, with the copy as it was, for a payload that is empty."""
        if not payload.numel():
            return torch.full_like(copy, math.nan)
        self._codec.decode_add(payload, copy)
        return copy

    def _message_bytes(self) -> int:
        return self._codec.max_bytes(self.x.numel())
