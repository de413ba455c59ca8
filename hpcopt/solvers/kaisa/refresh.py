"""When a rank inverts the factors that it owns: at once or in the background, and only those that changed.

In the background, inverses of the factors as they were at step s are put to use at step s + lag, whether they are ready
early or must be waited for: what a run computes does not depend on how fast it was.

A factor's change is seen through its product with a fixed random vector, so that no second copy of it is kept.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hpcopt.pinned import numbers, passed, sent
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.averages import Average, Averages
from hpcopt.solvers.kaisa.factors import Failures, Work
from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer
from hpcopt.solvers.kaisa.method import PerLayer
from hpcopt.solvers.kaisa.plan import Plan


class Inverses:
    """What the method keeps of each layer of this rank's column, in one buffer that travels as it is.

    Attributes:
        flat: shape (plan.inverses.numel,).
        made: whether there are any yet.
    """

    def __init__(self, plan: Plan, dtype: torch.dtype, device: torch.device) -> None:
        self.flat = torch.zeros(plan.inverses.numel, dtype=dtype, device=device)
        self.made = False
        self._plan = plan

    def of(self, i: int) -> Tensor:
        """A layer's, a view."""
        return self.flat[self._plan.inverses.pieces[i]]

    @property
    def own(self) -> Tensor:
        """Those of the layers that this rank owns, a view."""
        return self.flat[self._plan.own_inverses]

    def of_own(self, own: Tensor, i: int) -> Tensor:
        """A layer's within ``own`` or a copy of it."""
        piece, start = self._plan.inverses.pieces[i], self._plan.own_inverses.start
        return own[piece.start - start : piece.stop - start]


@dataclass
class Refresher:
    """Inverts a rank's own layers.

    Attributes:
        tolerance: relative change of both factors below which a layer keeps its inverse; 0: none does.
        lag: steps after which background work is put to use; 0: there is none.
        seed: of the vectors that changes are seen through.
        failures, skipped: what happened so far.
    """

    method: PerLayer
    layers: Sequence[Layer]
    plan: Plan
    averages: Averages
    inverses: Inverses
    tolerance: float
    lag: int
    seed: int
    failures: Failures = field(default_factory=Failures)
    skipped: int = 0
    _sketches: dict[int, Tensor] = field(default_factory=dict)
    _pending: "Future[Tensor] | None" = None
    _due: int = 0

    def arrives(self, step: int, due: bool) -> bool:
        """Whether ``refresh`` will put new inverses to use; the same on all ranks."""
        at_once = due and (self.lag == 0 or not self.inverses.made)
        return at_once or (self._pending is not None and step >= self._due)

    def refresh(self, step: int, due: bool, damping: float) -> bool:
        """Do a step's part; ``due`` says that new inverses are asked for. Give whether the own ones are new.

        While some are under way, no others are begun.
        """
        arrived = self._finish(step)
        if due and (self.lag == 0 or not self.inverses.made):
            self._pending = None  # newer ones are here
            self._now(damping)
            self.inverses.made = arrived = True
        elif due and self._pending is None:
            self._start(damping, step + self.lag)
        return arrived

    def _now(self, damping: float) -> None:
        changed = self._changed(damping)
        work = [self._work(i, self.averages.of[i], self.inverses.of(i), damping) for i in changed]
        self.method.invert(work, self.failures)

    def _start(self, damping: float, due: int) -> None:
        """In the background, from the factors as they are now, for use at step ``due``."""
        snapshots = {i: self._copy(i) for i in self._changed(damping)}
        own = self.inverses.own.clone()

        def work() -> Tensor:
            to_do = [self._work(i, average, self.inverses.of_own(own, i), damping) for i, average in snapshots.items()]
            self.method.invert(to_do, self.failures)
            return own

        self._due = due
        with ThreadPoolExecutor(1, "inverses") as pool:
            self._pending = pool.submit(self._beside(work))
            pool.shutdown(wait=False)

    def _beside(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The same work, on a device on a stream of its own, behind what the current one has been given; what it gives
        is then done.
        """
        device = self.inverses.flat.device
        if device.type == "cpu":
            return work
        module = torch.get_device_module(device)
        stream, ready = module.Stream(device=device), passed(device)

        def run() -> Tensor:
            with module.stream(stream):
                stream.wait_event(ready)
                own = work()
                passed(device).synchronize()
            return own

        return run

    def _finish(self, step: int) -> bool:
        """Put background inverses to use if this is the step; give whether it was."""
        if self._pending is None or step < self._due:
            return False
        self.inverses.own.copy_(self._pending.result())
        self._pending = None
        return True

    def due_step(self) -> int | None:
        """When background work will be put to use; the same on all ranks."""
        return None if self._pending is None else self._due

    def state(self, i: int) -> dict[str, Any]:
        """What a checkpoint keeps of a layer, beside its factors and inverse."""
        entry: dict[str, Any] = {"sketch": self._sketches[i]} if i in self._sketches else {}
        if self._pending is not None:
            entry["coming"] = self.inverses.of_own(self._pending.result(), i)
        return entry

    def restore(self, entries: dict[int, dict[str, Any]], due: int | None) -> None:
        """Take back what ``state`` gave, once the inverses in use are there."""
        self.forget()
        self._sketches = {i: entry["sketch"].clone() for i, entry in entries.items() if "sketch" in entry}
        if due is not None:
            own = self.inverses.own.clone()
            for i, entry in entries.items():
                self.inverses.of_own(own, i).copy_(entry["coming"])
            self._pending, self._due = Future(), due
            self._pending.set_result(own)

    def forget(self) -> None:
        """Leave what was inverted, so that all is inverted at the next step."""
        self._sketches, self._pending, self.inverses.made = {}, None, False

    def _changed(self, damping: float) -> list[int]:
        """The own layers to invert; their sketches are brought up to date."""
        if self.tolerance == 0:
            return self.plan.refreshed
        sketches = {i: self._sketch(i, damping) for i in self.plan.refreshed}
        known = [i for i in self.plan.refreshed if i in self._sketches]
        looks = [self._has_moved(i, sketches[i], self._sketches[i]) for i in known]
        moved = dict(zip(known, numbers(looks), strict=True))  # one question for all
        changed = [i for i in self.plan.refreshed if moved.get(i, True)]
        self._sketches.update((i, sketches[i]) for i in changed)
        self.skipped += len(self.plan.refreshed) - len(changed)
        return changed

    def _has_moved(self, i: int, new: Tensor, old: Tensor) -> Tensor:
        """Whether A, G or the damping has changed by more than the tolerance, as a scalar."""
        pairs = zip(self._pieces(i, new), self._pieces(i, old), strict=True)
        return torch.stack([(now - then).norm() > self.tolerance * then.norm() for now, then in pairs]).any()

    def _sketch(self, i: int, damping: float) -> Tensor:
        layer, average = self.layers[i], self.averages.of[i]
        generator = torch.Generator().manual_seed(derive(self.seed, 0, EVERY_RANK, f"sketch of {layer.name}"))
        parts = []
        for packed, shape in ((average.a, layer.a), (average.g, layer.g)):
            probe = sent(torch.randn(shape.matrices, shape.size, 1, generator=generator), packed.device)
            parts.append(symmetric.multiply(packed.to(layer.dtype), probe.to(layer.dtype)).flatten())
        return torch.cat([*parts, parts[0].new_full((1,), damping)])

    def _pieces(self, i: int, sketch: Tensor) -> Sequence[Tensor]:
        """Of A, of G, and the damping."""
        n, m = (s.matrices * s.size for s in (self.layers[i].a, self.layers[i].g))
        pieces: tuple[Tensor, ...] = torch.split(sketch, [n, m, 1])
        return pieces

    def _copy(self, i: int) -> Average:
        average = self.averages.of[i]
        return Average(average.a.clone(), average.g.clone(), average.updates)

    def _work(self, i: int, average: Average, out: Tensor, damping: float) -> Work:
        layer = self.layers[i]
        if average.updates:
            return Work(layer, average.a, average.g, damping, out)
        return Work(layer, _unit(layer.a, layer), _unit(layer.g, layer), 0.0, out)  # never used: gradients stay


def _unit(shape: FactorShape, layer: Layer) -> Tensor:
    eye = torch.eye(shape.size, dtype=layer.dtype, device=layer.weight.device).expand(shape.matrices, -1, -1)
    return symmetric.pack(eye, eye.new_empty(shape.matrices, symmetric.packed_length(shape.size)))
