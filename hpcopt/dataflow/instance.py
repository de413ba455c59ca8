"""Samples whose shapes, and the networks for them, differ from one to the next."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Instance:
    """One sample.

    Attributes:
        inputs: what the network gets, in the order of its arguments.
        target: what the criterion gets beside the network's outputs.
    """

    inputs: tuple[Tensor, ...]
    target: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "Instance":
        """The instance on a device."""
        return self.moved(lambda x: x.to(device))

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Instance":
        """As ``to``, by something that moves a tensor there."""
        return Instance(tuple(map(move, self.inputs)), tuple(map(move, self.target)))


@dataclass(frozen=True)
class InstanceBatch:
    """This rank's instances of one global batch.

    Attributes:
        indices: which of the data set these are.
        draw: gives an instance by its index.
        global_size: instances in the batch over all ranks.
        device: where they are wanted.
    """

    indices: tuple[int, ...]
    draw: Callable[[int], Instance]
    global_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Instance]:
        return (self.draw(index).to(self.device) for index in self.indices)

    @property
    def weight(self) -> float:
        """This rank's part of the global batch: the factor that makes its mean loss a summand of the global one."""
        return len(self) / self.global_size

    def split(self, parts: int) -> "list[InstanceBatch]":
        """Cut into ``parts`` micro-batches of nearly equal size, leaving out empty ones."""
        edges = [len(self) * part // parts for part in range(parts + 1)]
        cuts = [self.indices[a:b] for a, b in itertools.pairwise(edges) if b > a]
        return [InstanceBatch(indices, self.draw, self.global_size, self.device) for indices in cuts]

    def to(self, device: torch.device) -> "InstanceBatch":
        """The batch on a device."""
        return InstanceBatch(self.indices, self.draw, self.global_size, device)

    def moved(self, move: Callable[[Tensor], Tensor], device: torch.device) -> "InstanceBatch":
        """As ``to``, by something that moves a tensor there; the instances are drawn now, and not when asked for."""
        drawn = {index: self.draw(index).moved(move) for index in self.indices}
        return InstanceBatch(self.indices, drawn.__getitem__, self.global_size, device)


@dataclass(frozen=True)
class InstanceLoss:
    """The mean over a batch's instances of what a criterion makes of the network's outputs and the target.

    Attributes:
        criterion: of the outputs and the target's tensors: a tensor of one number.
    """

    criterion: Callable[..., Tensor]

    def __call__(self, model: nn.Module, batch: InstanceBatch) -> Tensor:
        """The loss of a batch of one instance or more."""
        return torch.stack([self.criterion(model(*one.inputs), *one.target) for one in batch]).mean()
