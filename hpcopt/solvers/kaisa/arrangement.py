"""How KAISA's work on a model is spread over the ranks: from its layers and the settings to every rank's plan.

Pure functions of shapes and settings: nothing here communicates, and every rank finds the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from hpcopt.solvers.kaisa.cost import Forecast, forecast, layer_cost
from hpcopt.solvers.kaisa.layers.layer import Layer, memory_of
from hpcopt.solvers.kaisa.memory import Memory, Widths, choose, predict
from hpcopt.solvers.kaisa.method import Method, PerLayer
from hpcopt.solvers.kaisa.placement import Grid, place
from hpcopt.solvers.kaisa.plan import Plan, Sizes
from hpcopt.solvers.kaisa.settings import DTYPES, KaisaSettings


class Arrangement:
    """The placement of a model's layers on ``size`` ranks, and what follows from it.

    Attributes:
        factor_dtype, inverse_dtype: in which averages and inverses are kept; for "float32" the layers' own.
        device: where.
        placement: the grid, and who owns which layer.
    """

    def __init__(self, layers: Sequence[Layer], method: PerLayer, settings: KaisaSettings, size: int) -> None:
        """Place the layers.

        Raises:
            JobError: no placement fits the memory budget.
        """
        self._layers, self._settings = layers, settings
        self._dtype, self.device = memory_of(layers)
        self.factor_dtype = self._kept(settings.factor_dtype)
        self.inverse_dtype = self._kept(settings.inverse_dtype)
        own = self._dtype.itemsize
        self._widths = Widths(own, self.factor_dtype.itemsize, self.inverse_dtype.itemsize, own)
        self._sizes = [_sizes(layer, method.of(layer)) for layer in layers]
        self._costs = [layer_cost(layer, method.of(layer), self._widths, settings) for layer in layers]
        if settings.memory_budget is not None:
            self.placement, _ = choose(self._costs, self._sizes, size, self._widths, settings.memory_budget)
        else:
            self.placement = place(self._costs, Grid.of_fraction(size, settings.fraction))

    def plan(self, rank: int) -> Plan:
        """A rank's part."""
        return Plan(self.placement, self._sizes, rank)

    def memory(self, plan: Plan) -> Memory:
        """The bytes that a rank's part takes."""
        return predict(plan, self._widths)

    def forecasts(self) -> list[Forecast]:
        """What the memory-optimal, the half-way and the communication-optimal grid would cost."""
        size = self.placement.grid.size
        grids = dict.fromkeys(Grid.of_fraction(size, fraction) for fraction in (1 / size, 0.5, 1.0))
        return [forecast(grid, self._costs, self._sizes, self._widths, self._settings) for grid in grids]

    def describe(self, skipped: Mapping[str, str]) -> dict[str, str]:
        """The arrangement for a person, with what is left alone, and why."""
        grid = self.placement.grid
        plans = [self.plan(rank) for rank in range(grid.size)]
        memory = [self.memory(plan) for plan in plans]
        names = [layer.name for layer in self._layers]
        return {
            "KAISA layers": f"{self._by_method()}; {len(skipped)} not: {_by_reason(skipped)}",
            "KAISA grid": f"fraction {grid.fraction:.3g}\n{self.placement.text()}",
            "KAISA memory": f"{max(m.held_bytes for m in memory):,} bytes kept on the fullest rank, "
            f"{max(m.passing_bytes for m in memory):,} more in passing",
            "KAISA rank 0": "\n".join(plans[0].lines(names, self._widths.sums)),
        }

    def _by_method(self) -> str:
        counts = Counter(layer.method for layer in self._layers)
        return ", ".join(f"{count} by {name}" for name, count in counts.items()) or "none"

    def _kept(self, name: str) -> torch.dtype:
        return self._dtype if name == "float32" else DTYPES[name]


def _by_reason(skipped: Mapping[str, str]) -> str:
    reasons = dict.fromkeys(skipped.values())
    groups = ([name for name in skipped if skipped[name] == why] for why in reasons)
    return ", ".join(f"{' '.join(names)} ({why})" for names, why in zip(groups, reasons, strict=True)) or "none"


def _sizes(layer: Layer, method: Method) -> Sizes:
    kept = method.numel(layer), layer.numel, layer.factors, method.carried(layer)
    return Sizes(layer.sums, *kept, method.working(layer))
