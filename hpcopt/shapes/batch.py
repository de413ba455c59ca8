"""This rank's part of one global batch: what a solver may ask of it, and its tensor form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hpcopt.errors import DataError

Move = Callable[[Tensor], Tensor]  # from main memory to a device


class Batch(Protocol):
    """Whatever a step is made of: rows of tensors, a graph, trajectories. One with a method ``moved``, as TensorBatch
    has it, travels to a GPU while the step before is computed.
    """

    def __len__(self) -> int:
        """Samples in this part."""

    @property
    def weight(self) -> float:
        """This rank's part of the global batch: the factor that makes its mean loss a summand of the global one."""

    def split(self, parts: int) -> list[Self]:
        """Cut into at most ``parts`` micro-batches, none of them empty, whose weights add up to this one's."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""


def require_batch(given: Any, giver: str) -> Any:
    """What a workload gives, if it is a ``Batch``.

    Raises:
        DataError: it is something else, or None.
    """
    if not all(hasattr(given, what) for what in ("split", "weight", "to", "__len__")):
        raise DataError(f"{giver} gave {'nothing more' if given is None else f'a {type(given).__name__}, no Batch'}")
    return given


@dataclass(frozen=True)
class TensorBatch:
    """This rank's samples of one global batch.

    Attributes:
        tensors: arrays by name, each with the samples along its first dimension.
        indices: which samples of the data set these are, shape (n,), int64.
        global_size: samples in the batch over all ranks.
    """

    tensors: dict[str, Tensor]
    indices: Tensor
    global_size: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def weight(self) -> float:
        """This rank's part of the global batch: the factor that makes its mean loss a summand of the global one."""
        return len(self) / self.global_size

    def split(self, parts: int) -> list["TensorBatch"]:
        """Cut into ``parts`` micro-batches of nearly equal size, leaving out empty ones."""
        if parts == 1 and len(self):
            return [self]
        rows = [r for r in torch.tensor_split(torch.arange(len(self)), parts) if len(r)]
        return [
            TensorBatch(
                {name: t[r[0] : r[-1] + 1] for name, t in self.tensors.items()}, self.indices[r], self.global_size
            )
            for r in rows
        ]

    def to(self, device: torch.device) -> "TensorBatch":
        """The batch with its tensors on a device; the indices, which choose rows of tables, stay in main memory."""
        return self.moved(lambda t: t.to(device), device)

    def moved(self, move: Move, device: torch.device) -> "TensorBatch":
        """As ``to``, by something that moves a tensor there."""
        return replace(self, tensors={name: move(t) for name, t in self.tensors.items()})


@dataclass(frozen=True)
class VirtualBatch:
    """The parts of one global batch that this rank's virtual ranks have (``hpcopt.comm.virtual``); no ``Batch``, for it
    is not to be cut otherwise.

    Attributes:
        parts: a ``Batch`` of each, in their order.
        seeds: what each draws by while it computes.
    """

    parts: Sequence[Any]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def weight(self) -> float:
        """Of all parts together."""
        return float(sum(part.weight for part in self.parts))

    @property
    def global_size(self) -> int:
        """Samples in the batch over all ranks, where batches know."""
        size: int = self.parts[0].global_size
        return size
