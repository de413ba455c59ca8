"""Scalars of steps, which may come at some steps and on some ranks only, put together over the ranks."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.errors import MetricsError
from hpcopt.shapes.stats import Over, Scalar
from hpcopt.store.tables import usable


class Scalars:
    """Those of a block of steps on this rank."""

    def __init__(self, taken: Iterable[str]) -> None:
        """``taken`` are names that no scalar may have."""
        self._taken = frozenset(taken)
        self._over: dict[str, Over] = {}
        self._values: dict[str, dict[int, float]] = {}

    def add(self, row: int, scalars: Mapping[str, Scalar | float]) -> None:
        """Take those of the block's row-th step.

        Raises:
            MetricsError: a name cannot be one, or its ranks are now put together otherwise than before.
        """
        for name, given in scalars.items():
            value, over = (given.value, given.over) if isinstance(given, Scalar) else (given, "mean")
            if name not in self._over and (name in self._taken or not usable(name)):
                raise MetricsError(f"a scalar cannot be called {name!r}: the name stands for something else")
            self.put(row, name, value, over)

    def put(self, row: int, name: str, value: float, over: Over) -> None:
        """Take one, whatever its name."""
        if self._over.setdefault(name, over) != over:
            raise _unlike(name, {self._over[name], over})
        self._values.setdefault(name, {})[row] = value

    def put_together(self, world: World, rows: int) -> dict[str, np.ndarray]:
        """Give every scalar's column, (rows,), NaN where no rank gave a value, and start anew. Collective.

        Raises:
            MetricsError: on all ranks: they do not agree how a scalar is put together.
        """
        over = self._agreed(world)
        values = torch.full((len(over), rows), math.nan, dtype=torch.float64)
        for index, name in enumerate(over):
            given = self._values.get(name, {})
            values[index, list(given)] = torch.tensor(list(given.values()), dtype=torch.float64)
        self._values = {}
        return dict(zip(over, _reduced(world, values, list(over.values())).numpy(), strict=True)) if over else {}

    def _agreed(self, world: World) -> dict[str, Over]:
        """All ranks' names, sorted. Those that every rank has take a message of 16 bytes. Collective."""
        mine = json.dumps(sorted(self._over.items()))
        digest = int.from_bytes(hashlib.blake2b(mine.encode(), digest_size=7).digest())
        low, high = world.all_reduce(torch.tensor([digest, -digest]), "min").tolist()
        if low != -high:
            for theirs in map(json.loads, world.gather_text(mine)):
                for name, over in theirs:
                    if self._over.setdefault(name, over) != over:
                        raise _unlike(name, {self._over[name], over}).everywhere()
        return dict(sorted(self._over.items()))


def _unlike(name: str, over: set[str]) -> MetricsError:
    return MetricsError(f"the scalar {name!r} is given over {' and over '.join(sorted(map(repr, over)))}: choose one")


def _reduced(world: World, values: Tensor, over: list[Over]) -> Tensor:
    """Put ranks' values, (scalars, rows), NaN where there is none, together; messages are of what some scalar needs."""
    given = ~values.isnan()
    zeros = torch.zeros_like(values)
    sums, counts = world.all_reduce(torch.stack([torch.where(given, values, zeros), given.double()]))
    found = {"sum": sums}
    if {"mean", "max"} & set(over):
        ends = torch.stack([torch.where(given, values, -math.inf), torch.where(given, -values, -math.inf)])
        high, low = world.all_reduce(ends, "max") * torch.tensor([1.0, -1.0]).view(2, 1, 1)
        found |= {"mean": torch.where(high == low, high, sums / counts), "max": high}
    if "rank" in over:
        first = world.all_reduce(torch.where(given, float(world.rank), math.inf).double(), "min")
        found["rank"] = world.all_reduce(torch.where(given & (first == world.rank), values, zeros))
    rows = [found[kind][index] for index, kind in enumerate(over)]
    return torch.where(counts > 0, torch.stack(rows), math.nan)
