"""A group of ranks, one of which leads: who it is, and how its parameters come to the others."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.comm.traffic import least_bytes
from hpcopt.comm.warm_up import compile_once
from hpcopt.comm.world import World
from hpcopt.compress import Codec, Dense
from hpcopt.seeds import derive
from hpcopt.shapes.solver import Tree

BROKEN = math.inf  # as a rank's loss: its parameters are not finite


def leader_of(losses: Sequence[float]) -> int | None:
    """The rank with the smallest loss, of equal ones the first; None if no loss is finite.

    >>> leader_of([0.3, float("nan"), 0.2, 0.2]), leader_of([float("inf"), float("nan")])
    (2, None)
    """
    finite = [rank for rank, loss in enumerate(losses) if math.isfinite(loss)]
    return min(finite, key=lambda rank: losses[rank], default=None)


class Level:
    """The leader of some ranks, and its parameters as they were announced.

    With a codec that loses something, the leader sends what its parameters differ by from ``target``, which all ranks
    have the same bits of; what a payload lacks is so part of the next one.

    Attributes:
        target: shape (n,), float32: where the ranks are pulled; as of the last announcement.
        leader: rank in the group; None before the first announcement, or if no rank could lead.
        broken: ranks of the job whose parameters were not finite at the last announcement.
        pull: share of the way to the target.
    """

    def __init__(self, world: World, start: Tensor, *, every: int, pull: float, codec: Codec, seed: int) -> None:
        """Begin with the parameters that all ranks start from. Collective."""
        self._world, self._codec, self._seed = world, codec, seed
        self.every, self.pull, self.target = every, pull, start.clone()
        self.leader: int | None = None
        self.broken: list[int] = []
        if world.transport.point_to_point and not isinstance(codec, Dense):  # no rehearsal
            compile_once(world, codec.warm)

    @property
    def pulls(self) -> bool:
        """Whether this rank is pulled: there is a leader, and it is another."""
        return self.leader is not None and self.leader != self._world.rank

    def announce(self, step: int, loss: float, x: Tensor) -> None:
        """Choose the leader and bring its parameters to all. Collective: 8 (P - 1) bytes of each rank, and a broadcast
        of the leader's payload.

        Args:
            step: for seeds.
            loss: this rank's running loss; NaN if it has none, ``BROKEN`` if it may not lead.
            x: its parameters, flat.
        """
        world = self._world
        losses = world.all_gather(torch.tensor([loss], dtype=torch.float64)).ravel().tolist()
        self.broken = [world.ranks[rank] for rank, each in enumerate(losses) if each == BROKEN]
        self.leader = leader_of(losses)
        if self.leader is None:
            return
        if isinstance(self._codec, Dense):
            if world.rank == self.leader:
                self.target.copy_(x)
            world.broadcast(self.target, self.leader)
            return
        payload = torch.zeros(self._codec.max_bytes(x.numel()), dtype=torch.uint8)
        if world.rank == self.leader:
            seed = derive(self._seed, step, self.leader, "leader")
            self._codec.encode(x - self.target, seed=seed, out=payload)
            world.traffic.dense_bytes += (4 * x.numel() - payload.numel()) * (world.size > 1)
        world.broadcast(payload, self.leader)
        self._codec.decode_add(payload, self.target)

    def planned_bytes(self) -> int:
        """That the leader sends at an announcement; the others send their losses alone."""
        size, n = self._world.size, self.target.numel()
        payload = 4 * n if isinstance(self._codec, Dense) else self._codec.max_bytes(n)
        return least_bytes("all_gather", 8, size) + least_bytes("broadcast", payload, size, root=True)

    def rank_state_dict(self) -> Tree:
        """The target, the same on the group's ranks, and who led."""
        return {"target": self.target, "leader": self.leader}

    def load_state_dict(self, state: Tree) -> None:
        """Go on from a ``rank_state_dict`` of as many ranks."""
        self.target.copy_(state["target"])
        self.leader = state["leader"]
