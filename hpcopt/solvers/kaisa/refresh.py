"""When a rank inverts the factors that it owns: at once or in the background, and only those that changed.

In the background, inverses of the factors as they were at step s are put to use at step s + lag, whether they are ready
early or must be waited for: what a run computes does not depend on how fast it was.

A factor's change is seen through its product with a fixed random vector, so that no second copy of it is kept.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.averages import Average, Averages
from hpcopt.solvers.kaisa.inverse import Failures, Method
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer
from hpcopt.solvers.kaisa.plan import Plan


@dataclass
class Refresher:
    """Inverts a rank's own layers.

    Attributes:
        tolerance: relative change of both factors below which a layer keeps its inverse; 0: none does.
        failures, skipped: what happened so far.
    """

    method: Method
    layers: Sequence[Layer]
    plan: Plan
    averages: Averages
    tolerance: float
    failures: Failures = field(default_factory=Failures)
    skipped: int = 0
    _sketches: dict[int, Tensor] = field(default_factory=dict)
    _pending: "Future[Tensor] | None" = None
    _due: int = 0

    def now(self, inverses: Tensor, damping: float) -> None:
        """Refresh the own inverses in a column's buffer."""
        for i in self._changed(damping):
            self._invert(i, self.averages.of[i], inverses[self.plan.inverses.pieces[i]], damping)

    def start(self, inverses: Tensor, damping: float, due: int) -> None:
        """Begin to refresh them in the background, from the factors as they are now, for use at step ``due``."""
        snapshots = {i: self._copy(i) for i in self._changed(damping)}
        start = self.plan.own_inverses.start
        own = inverses[self.plan.own_inverses].clone()

        def work() -> Tensor:
            for i, average in snapshots.items():
                piece = self.plan.inverses.pieces[i]
                self._invert(i, average, own[piece.start - start : piece.stop - start], damping)
            return own

        self._due = due
        with ThreadPoolExecutor(1, "inverses") as pool:
            self._pending = pool.submit(work)
            pool.shutdown(wait=False)

    def finish(self, inverses: Tensor, step: int) -> bool:
        """Put background inverses to use if this is the step; give whether it was."""
        if self._pending is None or step < self._due:
            return False
        inverses[self.plan.own_inverses] = self._pending.result()
        self._pending = None
        return True

    def due_step(self) -> int | None:
        """When background work will be put to use; the same on all ranks."""
        return None if self._pending is None else self._due

    def state(self, i: int) -> dict[str, Any]:
        """What a checkpoint keeps of a layer, beside its factors and inverse."""
        entry: dict[str, Any] = {"sketch": self._sketches[i]} if i in self._sketches else {}
        if self._pending is not None:
            piece, start = self.plan.inverses.pieces[i], self.plan.own_inverses.start
            entry["coming"] = self._pending.result()[piece.start - start : piece.stop - start]
        return entry

    def restore(self, entries: dict[int, dict[str, Any]], due: int | None, inverses: Tensor) -> None:
        """Take back what ``state`` gave."""
        self._sketches = {i: entry["sketch"].clone() for i, entry in entries.items() if "sketch" in entry}
        self._pending = None
        if due is not None:
            own, start = inverses[self.plan.own_inverses].clone(), self.plan.own_inverses.start
            for i, entry in entries.items():
                piece = self.plan.inverses.pieces[i]
                own[piece.start - start : piece.stop - start] = entry["coming"]
            self._pending, self._due = Future(), due
            self._pending.set_result(own)

    def _changed(self, damping: float) -> list[int]:
        """The own layers to invert; their sketches are brought up to date."""
        if self.tolerance == 0:
            return self.plan.owned
        changed = []
        for i in self.plan.owned:
            sketch = self._sketch(i, damping)
            old = self._sketches.get(i)
            if old is None or any(
                (new - kept).norm() > self.tolerance * kept.norm()
                for new, kept in zip(self._pieces(i, sketch), self._pieces(i, old), strict=True)
            ):
                self._sketches[i] = sketch
                changed.append(i)
        self.skipped += len(self.plan.owned) - len(changed)
        return changed

    def _sketch(self, i: int, damping: float) -> Tensor:
        layer, average = self.layers[i], self.averages.of[i]
        generator = torch.Generator().manual_seed(i)
        parts = []
        for packed, shape in ((average.a, layer.a), (average.g, layer.g)):
            probe = torch.randn(shape.matrices, shape.size, 1, generator=generator).to(layer.dtype)
            parts.append(symmetric.multiply(packed.to(layer.dtype), probe).flatten())
        return torch.cat([*parts, parts[0].new_tensor([damping])])

    def _pieces(self, i: int, sketch: Tensor) -> Sequence[Tensor]:
        """Of A, of G, and the damping."""
        n, m = (s.matrices * s.size for s in (self.layers[i].a, self.layers[i].g))
        pieces: tuple[Tensor, ...] = torch.split(sketch, [n, m, 1])
        return pieces

    def _copy(self, i: int) -> Average:
        average = self.averages.of[i]
        return Average(average.a.clone(), average.g.clone(), average.updates)

    def _invert(self, i: int, average: Average, out: Tensor, damping: float) -> None:
        layer = self.layers[i]
        if average.updates:
            self.method.invert(layer, average.a, average.g, damping, out, self.failures)
        else:  # never used: leave gradients as they are
            self.method.invert(layer, _unit(layer.a, layer), _unit(layer.g, layer), 0.0, out, self.failures)


def _unit(shape: FactorShape, layer: Layer) -> Tensor:
    eye = torch.eye(shape.size, dtype=layer.dtype).expand(shape.matrices, -1, -1)
    return symmetric.pack(eye, eye.new_empty(shape.matrices, symmetric.packed_length(shape.size)))
