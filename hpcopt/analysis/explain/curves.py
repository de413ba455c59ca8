"""Deletion and insertion curves: what becomes of a class's probability while the places that count most go, or come.

The places are the pixels of an image, the tokens of a sequence, the columns of a table. A good ranking lets the
probability fall fast where its first places are taken away, and rise fast where they alone are there (Petsiuk et al.
2018, arXiv:1806.07421). The area under a curve says so in one number, to be held against that of a random ranking.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hpcopt.analysis.explain.question import Question

POINTS = 21  # of a curve, from none of the places to all
RANDOM_RANKINGS = 4  # of each input, whose mean curve the others are held against


class Curves(NamedTuple):
    """Probability of the target, or its number where the network gives one alone; each (n, POINTS)."""

    deletion: Tensor
    insertion: Tensor


def curves(q: Question, attribution: Tensor, generator: torch.Generator) -> Curves:
    """The curves of a ranking.

    Args:
        q: model, inputs, targets and baseline.
        attribution: what each value counts, (n, ...); of maps (n, 1, height, width).
        generator: decides between places that count the same.
    """
    counts = per_place(attribution)
    mixed = torch.randperm(counts.shape[1], generator=generator)
    order = mixed[counts[:, mixed].argsort(dim=1, descending=True, stable=True)]
    return _along(q, order)


def random_curves(q: Question, generator: torch.Generator) -> Curves:
    """The mean of those of random rankings."""
    places = per_place(q.x).shape[1]
    found = [
        _along(q, torch.stack([torch.randperm(places, generator=generator) for _ in range(len(q))]))
        for _ in range(RANDOM_RANKINGS)
    ]
    return Curves(*(torch.stack(each).mean(0) for each in zip(*found, strict=True)))


def area(curve: Tensor) -> Tensor:
    """Area under curves (..., POINTS) over the part of the places from 0 to 1, by trapezoids."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def per_place(values: Tensor) -> Tensor:
    """Values (n, channels, height, width), (n, s, width) or (n, columns) summed up for each place, (n, places)."""
    if values.dim() == 4:
        return values.sum(1).flatten(1)
    return values.flatten(2).sum(2) if values.dim() == 3 else values


def _along(q: Question, order: Tensor) -> Curves:
    """The curves of places in an order, (n, places)."""
    places = order.shape[1]
    shape = (len(q), 1, *q.x.shape[2:]) if q.x.dim() == 4 else (len(q), places, *[1] * (q.x.dim() - 2))
    rank = order.argsort(1).reshape(shape)
    deletion, insertion = [], []
    with torch.no_grad():
        for point in range(POINTS):
            gone = rank < round(point * places / (POINTS - 1))
            deletion.append(_probability(q, torch.where(gone, q.baseline, q.x)))
            insertion.append(_probability(q, torch.where(gone, q.x, q.baseline)))
    return Curves(torch.stack(deletion, 1), torch.stack(insertion, 1))


def _probability(q: Question, x: Tensor) -> Tensor:
    numbers = q.forward(x)
    return numbers[:, 0] if numbers.shape[1] == 1 else numbers.softmax(1).gather(1, q.target[:, None])[:, 0]
