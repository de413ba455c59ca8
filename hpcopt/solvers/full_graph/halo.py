"""What neighbours on other ranks have, layer by layer, and the gradients of it back.

Dense, rows travel as they are. With a codec, what travels is the encoding of their change since the last exchange:
both ends keep the sum of what was decoded so far, and what a codec held back is in the next change. That is error
feedback in the form of EF21 (Richtarik et al. 2021, arXiv:2106.05203); a codec that enlarges its errors is damped by
1 / (1 + omega). The first exchange of every layer is dense. With ``every`` = k, layers are exchanged every k-th step,
and the steps between use what came last, in both directions: activations and gradients are then up to k - 1 steps old.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm import ragged
from hpcopt.comm.transport import wait_all
from hpcopt.comm.world import World
from hpcopt.compress import Codec
from hpcopt.errors import JobError
from hpcopt.phases import PhaseClock
from hpcopt.seeds import derive

TAG = 11


class Halo:
    """The rows that this rank sends to others and gets from them.

    Attributes:
        sent_bytes: since the last ``lap``.
    """

    def __init__(self, world: World, codec: Codec | None, every: int, seed: int, clock: PhaseClock) -> None:
        self._world, self._codec, self._every, self._seed, self._clock = world, codec, every, seed, clock
        self._step, self._layer, self.sent_bytes = 0, 0, 0
        self._there: dict[str, Tensor] = {}  # what the other end has of this rank's, by channel
        self._here: dict[str, Tensor] = {}  # what this rank has of the other end's

    def begin(self, step: int) -> None:
        """Get ready for a step's passes."""
        self._step, self._layer = step, 0

    def next_layer(self) -> int:
        """Number of the layer that is exchanged next, of those whose values change."""
        self._layer += 1
        return self._layer

    def constant(self, pieces: Mapping[int, Tensor], heights: Mapping[int, int]) -> dict[int, Tensor]:
        """Exchange rows that will not change, dense. Collective."""
        width, like = self._width(pieces)
        landing = {rank: like.new_empty(height, width) for rank, height in heights.items()}
        self._dense(pieces, landing)
        return landing

    def exchange(
        self, layer: int, way: str, pieces: Mapping[int, Tensor], heights: Mapping[int, int]
    ) -> dict[int, Tensor]:
        """Send rows to ranks, and give what they send. Collective.

        Args:
            layer: its number.
            way: "forward" or "back".
            pieces: rows for each rank, (k, d).
            heights: how many rows come from each rank.
        """
        width, like = self._width(pieces)
        name, due = f"{layer}.{way}", self._step % self._every == 0
        kept = all(f"{name}.{rank}" in self._here for rank in heights)
        if kept and (not due or self._codec is not None):
            self._world.traffic.dense_bytes += sum(x.numel() * x.element_size() for x in pieces.values())
            if due and self._codec is not None:
                self._changes(self._codec, name, pieces, heights)
            return {rank: self._here[f"{name}.{rank}"] for rank in heights}
        landing = {rank: like.new_empty(height, width) for rank, height in heights.items()}
        self._dense(pieces, landing)
        if self._codec is not None or self._every > 1:
            self._there |= {f"{name}.{rank}": x.clone() for rank, x in pieces.items() if self._codec is not None}
            self._here |= {f"{name}.{rank}": x for rank, x in landing.items()}
        return landing

    def lap(self) -> int:
        """Bytes sent since the last lap."""
        sent, self.sent_bytes = self.sent_bytes, 0
        return sent

    def state_dict(self) -> dict[str, Any]:
        """What both ends have of each other's."""
        return {"there": dict(self._there), "here": dict(self._here)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from a ``state_dict`` of this rank, of as many ranks."""
        self._there, self._here = (dict(state[end]) for end in ("there", "here"))

    def forget(self) -> None:
        """Begin anew: the next exchanges are dense."""
        self._there, self._here = {}, {}

    @staticmethod
    def _width(pieces: Mapping[int, Tensor]) -> tuple[int, Tensor]:
        like = next(iter(pieces.values()))
        return like.shape[1], like

    def _dense(self, pieces: Mapping[int, Tensor], landing: Mapping[int, Tensor]) -> None:
        traffic = self._world.traffic
        before = traffic.sent_bytes
        with self._clock("exchange"), self._world.watch("rows of neighbours", self._world.ranks):
            outgoing = [(x.contiguous(), rank) for rank, x in pieces.items()]
            ragged.exchange(self._world.transport, outgoing, [(x, rank) for rank, x in landing.items()])
        traffic.dense_bytes += traffic.sent_bytes - before
        self.sent_bytes += traffic.sent_bytes - before

    def _changes(self, codec: Codec, name: str, pieces: Mapping[int, Tensor], heights: Mapping[int, int]) -> None:
        """Send the changes of rows, and take others'. Collective."""
        world, before = self._world, self._world.traffic.sent_bytes
        here = {rank: self._here[f"{name}.{rank}"] for rank in heights}
        codec = codec.for_tensor(name, (1, self._width(pieces)[0]))
        slots = {rank: torch.empty(codec.max_bytes(x.numel()), dtype=torch.uint8) for rank, x in here.items()}
        waiting = [world.transport.receive(slot, rank, TAG, exact=False) for rank, slot in slots.items()]
        for rank, x in pieces.items():
            with self._clock("encode"):
                there = self._there[f"{name}.{rank}"]
                seed = derive(self._seed, self._step, world.rank, f"{name}.{rank}")
                payload = codec.encode((x - there).reshape(-1).float().cpu(), seed=seed)
                _add(codec, payload, there)
            waiting.append(world.transport.send(payload, rank, TAG))
        with self._clock("exchange"), world.watch("changes of neighbours", world.ranks):
            wait_all(waiting)
        with self._clock("decode"):
            for rank, slot in slots.items():
                _add(codec, slot, here[rank])
        self.sent_bytes += world.traffic.sent_bytes - before


def _add(codec: Codec, payload: Tensor, x: Tensor) -> None:
    """Add what a payload says of a change to x, in place: the same bits at both ends."""
    change = codec.decode(payload, x.numel()) * damping(codec, x.numel())
    x += change.view(x.shape).to(x)


def damping(codec: Codec, n: int) -> float:
    """What changes of n values are scaled by, so that what is left of them shrinks.

    Raises:
        JobError: on all ranks: nobody knows a factor for which it does.
    """
    if codec.contraction(n) is not None:
        return 1.0
    omega = codec.variance(n)
    if omega is None:
        raise JobError(
            f'halo codec "{codec.name}" neither contracts nor is unbiased: take topk, half, sign or qsgd'
        ).everywhere()
    return 1.0 / (1.0 + omega)
