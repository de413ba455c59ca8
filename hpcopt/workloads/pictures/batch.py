"""Pictures of several sizes in one batch, those of one size together."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hpcopt.shapes.batch import Move


@dataclass(frozen=True)
class Group:
    """Pictures of one size.

    Attributes:
        pictures: symbols, (n, rows, columns), uint8.
        values: what they should have, (n,), float32.
    """

    pictures: Tensor
    values: Tensor


@dataclass(frozen=True)
class PictureBatch:
    """This rank's pictures of one global batch.

    Attributes:
        groups: one a size.
        global_size: pictures in the batch over all ranks.
    """

    groups: tuple[Group, ...]
    global_size: int

    @classmethod
    def of(cls, drawn: Iterable[tuple[np.ndarray, float]], global_size: int) -> Self:
        """Sort pictures, (rows, columns) each, and their values by size."""
        sizes: dict[tuple[int, ...], list[tuple[np.ndarray, float]]] = {}
        for picture, value in drawn:
            sizes.setdefault(picture.shape, []).append((picture, value))
        groups = (
            Group(torch.from_numpy(np.stack([p for p, _ in same])), torch.tensor([v for _, v in same]))
            for _, same in sorted(sizes.items())
        )
        return cls(tuple(groups), global_size)

    def __len__(self) -> int:
        return sum(len(group.values) for group in self.groups)

    @property
    def weight(self) -> float:
        """This rank's part of the global batch: the factor that makes its mean loss a summand of the global one."""
        return len(self) / self.global_size

    def split(self, parts: int) -> list[Self]:
        """Cut into at most ``parts`` micro-batches of nearly equal size, none of them empty, of as few sizes each as
        can be.
        """
        edges = [len(self) * part // parts for part in range(parts + 1)]
        return [self._between(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        return self.moved(lambda x: x.to(device), device)

    def moved(self, move: Move, device: torch.device) -> Self:
        """As ``to``, by something that moves a tensor there."""
        return replace(self, groups=tuple(Group(move(g.pictures), move(g.values)) for g in self.groups))

    def _between(self, first: int, end: int) -> Self:
        """The pictures of these places, counted through the groups."""
        groups, at = [], 0
        for group in self.groups:
            inside = slice(max(0, first - at), max(0, end - at))
            if len(values := group.values[inside]):
                groups.append(Group(group.pictures[inside], values))
            at += len(group.values)
        return replace(self, groups=tuple(groups))
