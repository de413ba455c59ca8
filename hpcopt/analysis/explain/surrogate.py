"""The surrogate of LIME, CLE and KernelSHAP: a linear model of which parts are there, fitted by least squares."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]


class Surrogate:
    """A ridge regression in float64, for captum's ``Lime(interpretable_model=...)``.

    Fitted to z, what is there (m, parts), to y (m,) with weights w (m,), it minimises

        sum w (y - a - z c - (products of pairs of z) d)^2 + ridge (|c|^2 + |d|^2).

    ``representation`` is c, to which each pair adds half of its d at both of its ends, so that the parts share what
    only both together do. Without pairs it is the c of LIME (Ribeiro et al. 2016, arXiv:1602.04938); with them, of CLE,
    "LIME with feature combinations" (Yang et al. 2019, arXiv:1911.01005).
    """

    def __init__(self, pairs: Sequence[Pair] = (), ridge: float = 1.0) -> None:
        self._pairs, self._ridge = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2), ridge
        self._representation = torch.empty(0)

    def fit(self, train_data: Any, **_: object) -> None:
        """Fit to the batches (z, y, w) of a loader."""
        z, y, w = (torch.cat([p.double() for p in parts]) for parts in zip(*train_data, strict=True))
        y, w = y.reshape(-1), w.reshape(-1)
        features = torch.cat([z, z[:, self._pairs[:, 0]] * z[:, self._pairs[:, 1]]], 1)
        mean, level = (w @ features) / w.sum(), (w @ y) / w.sum()  # without a penalty the constant takes these up
        root = w.sqrt()[:, None]
        rows = [root * (features - mean)]
        values = [root[:, 0] * (y - level)]
        if self._ridge:
            width = features.shape[1]
            rows.append(self._ridge**0.5 * torch.eye(width, dtype=torch.float64))
            values.append(torch.zeros(width, dtype=torch.float64))
        found = torch.linalg.lstsq(torch.cat(rows), torch.cat(values)[:, None], driver="gelsd").solution[:, 0]
        parts = z.shape[1]
        shared = found[:parts].clone()
        for end in range(2):
            shared.index_add_(0, self._pairs[:, end], found[parts:] / 2)
        self._representation = shared

    def representation(self) -> Tensor:
        """What each part adds, (parts,), float64."""
        return self._representation

    def __call__(self, x: Tensor) -> Tensor:
        """Captum asks for it; nobody calls it."""
        raise NotImplementedError


def neighbours(parts: Tensor) -> list[Pair]:
    """The pairs of parts that touch along some dimension: squares side by side, words one after the other.

    Args:
        parts: to which part each value belongs, (1, ...).
    """
    touching: set[Pair] = set()
    for dimension in range(1, parts.dim()):
        length = parts.shape[dimension]
        one, other = parts.narrow(dimension, 0, length - 1), parts.narrow(dimension, 1, length - 1)
        for a, b in set(zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)):
            if a != b:
                touching.add((min(a, b), max(a, b)))
    return sorted(touching)
