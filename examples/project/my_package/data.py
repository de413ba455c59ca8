"""The data set: any ``torch.utils.data.Dataset``. Put files of your own in the place of these made-up points."""

import math

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Spirals(Dataset[tuple[Tensor, Tensor]]):
    """Points on spirals that start at the origin, one spiral a class.

    An item is a point, shape (2,), float32, and the number of its spiral, int64. The same seed gives the same points.

    Args:
        samples: number of points.
        spirals: number of spirals.
        noise: standard deviation of the points' distance from their spiral; a spiral's radius is 1.
        seed: of the points; training and test sets take different ones.
    """

    def __init__(self, samples: int = 3000, spirals: int = 3, noise: float = 0.02, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(spirals, (samples,), generator=draw)
        radius = torch.rand(samples, generator=draw).sqrt()
        angle = 2 * math.pi * (radius + self.labels / spirals)
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        self.points = points + noise * torch.randn(samples, 2, generator=draw)

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Give one point and its spiral."""
        return self.points[index], self.labels[index]
