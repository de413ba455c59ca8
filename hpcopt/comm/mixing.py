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
from collections import deque

import torch
from torch import Tensor

from hpcopt.comm.graphs import Graph, metropolis, sources
from hpcopt.comm.transport import Request, Transport, wait_all
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

    def __init__(self, transport: Transport, graph: Graph, x: Tensor) -> None:
        self.x, self.weight, self.step = x, 1.0, 0
        self._transport, self._graph = transport, graph

    @abstractmethod
    def mix(self) -> None:
        """One round. Collective: over a rank's neighbours."""

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

    Adding at a fixed age, and not on arrival, keeps runs reproducible bit for bit.
    """

    def __init__(self, transport: Transport, graph: Graph, x: Tensor, tau: int = 0) -> None:
        super().__init__(transport, graph, x)
        self._tau = tau
        self._under_way: deque[tuple[int, list[tuple[Request, Tensor]]]] = deque()
        self._sends: deque[tuple[int, list[Request]]] = deque()

    def mix(self) -> None:
        traffic, rank = self._transport.traffic, self._transport.rank
        edges = self._graph(self.step)
        with traffic.encoding():
            message = self._message(1 / (1 + len(edges[rank])))
            self.x.sub_(message[: self.x.numel()], alpha=len(edges[rank]))
            self.weight -= len(edges[rank]) * float(message[-2:].view(torch.float64))
        self._sends.append((self.step, [self._transport.send(message, to) for to in edges[rank]]))
        landing = [(torch.empty_like(message), source) for source in sources(edges, rank)]
        receives = [(self._transport.receive(buffer, source), buffer) for buffer, source in landing]
        self._under_way.append((self.step, receives))
        self._take_in(self.step - self._tau)
        self.step += 1

    def drain(self) -> None:
        self._take_in(self.step)

    def _take_in(self, until: int) -> None:
        """Add the messages of steps up to ``until``."""
        traffic = self._transport.traffic
        while self._under_way and self._under_way[0][0] <= until:
            for receive, message in self._under_way.popleft()[1]:
                with traffic.waiting():
                    receive.wait()
                with traffic.decoding():
                    self.x.add_(message[: self.x.numel()])
                    self.weight += float(message[-2:].view(torch.float64))
        while self._sends and self._sends[0][0] <= until:
            with traffic.waiting():
                wait_all(self._sends.popleft()[1])

    def _message(self, share: float) -> Tensor:
        """A share of x, and of the weight in the last eight bytes."""
        message = self.x.new_empty(self.x.numel() + 2 + self.x.numel() % 2)
        torch.mul(self.x, share, out=message[: self.x.numel()])
        message[-2:].view(torch.float64).fill_(self.weight * share)
        return message

    def _message_bytes(self) -> int:
        return 4 * (self.x.numel() + self.x.numel() % 2 + 2)


class Metropolis(Mixer):
    """Doubly stochastic mixing."""

    def mix(self) -> None:
        traffic, rank = self._transport.traffic, self._transport.rank
        weights = metropolis(self._graph(self.step), rank)
        landing = {j: torch.empty_like(self.x) for j in weights}
        receives = {j: self._transport.receive(landing[j], j) for j in weights}
        mine = self.x.clone()
        sends = [self._transport.send(mine, j) for j in weights]
        for j, weight in weights.items():
            with traffic.waiting():
                receives[j].wait()
            with traffic.decoding():
                self.x.add_(landing[j].sub_(mine), alpha=weight)
        with traffic.waiting():
            wait_all(sends)
        self.step += 1


class Choco(Mixer):
    """Compressed mixing on a fixed undirected graph."""

    def __init__(
        self, transport: Transport, graph: Graph, x: Tensor, codec: Codec, gamma: float, seed: int = 0
    ) -> None:
        super().__init__(transport, graph, x)
        self._weights = metropolis(graph(0), transport.rank)
        self._codec, self._gamma, self._seed = codec, gamma, seed
        # A neighbour's copy here is its own there, bit for bit: what one gains the other loses, and the mean stays.
        self.copies = {j: torch.zeros_like(x) for j in (transport.rank, *self._weights)}

    def mix(self) -> None:
        traffic, rank = self._transport.traffic, self._transport.rank
        with traffic.encoding():
            seed = derive(self._seed, self.step, rank, "choco")
            payload = self._encode(self.x - self.copies[rank], seed)
            mine = self._decode_add(payload, self.copies[rank])
        landing = {j: self.x.new_empty(self._message_bytes(), dtype=torch.uint8) for j in self._weights}
        receives = {j: self._transport.receive(landing[j], j, exact=False) for j in self._weights}
        sends = [self._transport.send(payload, j) for j in self._weights]
        for j, weight in self._weights.items():
            with traffic.waiting():
                received_bytes = receives[j].wait()
            with traffic.decoding():
                copy = self._decode_add(landing[j][:received_bytes], self.copies[j])
                self.x.add_(copy - mine, alpha=self._gamma * weight)
        with traffic.waiting():
            wait_all(sends)
        self.step += 1

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
