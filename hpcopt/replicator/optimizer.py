"""An optimizer whose steps are those of all replicas together.

The optimizer stays the object that it was, so schedules and ``state_dict`` work as ever; only its ``step`` first gives
every parameter the mean of the replicas' gradients. Nothing travels before the step: a backward pass may well leave
gradients in another optimizer's parameters, as a GAN's does, and which optimizer steps is agreed by all ranks first.
"""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, JobError, UnsupportedError
from hpcopt.exchange import Exchange, ExchangeConfig
from hpcopt.replicator.calls import Calls


class Wrapped:
    """What is kept of an optimizer that was wrapped.

    Attributes:
        index: of the optimizers, in the order in which they were wrapped.
        exchange: carries the gradients over the replicas.
        apply: the optimizer's own step.
    """

    def __init__(self, optimizer: Optimizer, index: int, replicas: World, config: ExchangeConfig) -> None:
        """Collective over the replicas.

        Raises:
            PeerError: the replicas' optimizers have other parameters.
        """
        self.optimizer, self.index, self.apply = optimizer, index, optimizer.step
        late = config.model_copy(update={"overlap": False})
        self.exchange = Exchange(replicas, self.named_parameters(), late, mean=True, seed=index)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters by their places in the optimizer's groups."""
        groups = enumerate(self.optimizer.param_groups)
        return [(f"group {g}, parameter {i}", p) for g, group in groups for i, p in enumerate(group["params"])]

    def average(self) -> None:
        """Give every parameter the mean gradient. Collective over the replicas.

        Raises:
            UnsupportedError: the optimizer has other parameters than when it was wrapped.
        """
        now = {p for _, p in self.named_parameters() if p.requires_grad}
        known = {p for bucket in self.exchange.buckets for p in bucket.views}
        if not now <= known:
            raise UnsupportedError("the optimizer got more parameters after wrap_optimizer: wrap it when it has all")
        self.exchange.finish()

    def gradients(self) -> list[torch.Tensor]:
        """Those of each bucket, end to end; they can be written to."""
        return [bucket.values for bucket in self.exchange.buckets]

    def flat_parameters(self) -> list[torch.Tensor]:
        """A copy of the parameters of each bucket, end to end, in the bucket's order."""
        return [torch.cat([p.detach().reshape(-1) for p in bucket.views]) for bucket in self.exchange.buckets]

    def set_parameters(self, flats: list[torch.Tensor]) -> None:
        """Take over what ``flat_parameters`` gave elsewhere."""
        for bucket, flat in zip(self.exchange.buckets, flats, strict=True):
            parts = torch.split(flat, [p.numel() for p in bucket.views])
            for p, part in zip(bucket.views, parts, strict=True):
                p.detach().copy_(part.view_as(p))


def carry_state(wrapped: Wrapped, world: World, replicas: World) -> None:
    """Give the optimizer what its exchange owes on this rank, for checkpoints: ``rank_state_dict`` and
    ``load_rank_state_dicts``, beside its ``state_dict``, which is the same on all replicas.
    """

    def load(_: Optimizer, parts: Sequence[Any]) -> None:
        if replicas.size == world.size or not len(parts):
            wrapped.exchange.load_state_dict(parts)
        elif len(parts) == world.size:
            wrapped.exchange.load_state_dict([parts[rank] for rank in replicas.ranks])
        else:
            raise CheckpointError(
                f"{len(parts)} ranks saved what an optimizer's exchange owes, and now {world.size} are grouped: go on "
                f"with {len(parts)}, or start over with --fresh"
            )

    optimizer: Any = wrapped.optimizer
    optimizer.rank_state_dict = wrapped.exchange.rank_state_dict
    optimizer.load_rank_state_dicts = MethodType(load, optimizer)


def replace_step(wrapped: Wrapped, calls: Calls, update: Callable[[], Any]) -> None:
    """Let the optimizer's ``step`` agree with the other ranks, average the gradients, and ``update``."""

    def step(_: Optimizer, closure: None = None) -> Any:
        if closure is not None:
            raise JobError("a step with a closure takes several gradients: call backward yourself, and step() after it")
        calls.agree(f"step of optimizer {wrapped.index}")
        wrapped.average()
        return update()

    wrapped.optimizer.step = MethodType(step, wrapped.optimizer)  # type: ignore[method-assign]
