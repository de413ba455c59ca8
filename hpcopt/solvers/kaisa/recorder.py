"""From the hooks to the sums of one factor step."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves

from hpcopt.hooks import after_accumulation
from hpcopt.lean_torch import uncompiled
from hpcopt.solvers.kaisa import fresh
from hpcopt.solvers.kaisa.averages import split
from hpcopt.solvers.kaisa.layers.find import Layers, add
from hpcopt.solvers.kaisa.layers.layer import Input, Layer, Sums, memory_of
from hpcopt.solvers.kaisa.plan import Buffer
from hpcopt.solvers.kaisa.targets import Distribution, Draws, sampled_gradient


class Recorder:
    """Adds up statistics while the model runs.

    Attributes:
        also: called as well, with a layer, its input and the gradient of its output.
        products: around each use of a layer.
        terms: samples that went through the model since the last ``take``, by its first input's first dimension: those
            whose outputs got a gradient, or all, if none did.
    """

    def __init__(
        self, model: nn.Module, layers: Layers, buffer: Buffer, draws: Draws | None, wanted: Callable[[], bool]
    ) -> None:
        """``draws`` if targets are sampled; ``wanted`` says whether to look."""
        self._model, self._all_layers, self._layers = model, layers, layers.found
        self._recorded = [(i, layer) for i, layer in enumerate(layers.found) if layer.sums]
        self._buffer, self._draws, self._wanted = buffer, draws, wanted
        self._flat: Tensor | None = None
        self._sums: dict[Layer, Sums] = {}
        self._pending: list[tuple[Layer, Input, GradientEdge, int]] = []
        self._inputs: WeakValueDictionary[int, Input] = WeakValueDictionary()  # by the id of the tensor
        self._paused = False
        self.products: Callable[[], AbstractContextManager[None]] = nullcontext
        self._passed = self._returned = 0  # samples that went forward, and that came back
        self._accumulated = False
        self.also: Callable[[Layer, Tensor, Tensor], None] | None = None
        self._handles = layers.watch(self._active, self._used)
        self._handles.append(model.register_forward_pre_hook(uncompiled(self._begin, model)))
        self._handles.append(model.register_forward_hook(uncompiled(self._count, model), with_kwargs=True))
        self._listen(layers.found)

    @property
    def terms(self) -> int:
        return self._returned or self._passed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away for a while."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def remove(self) -> None:
        """Leave the model."""
        for handle in self._handles:
            handle.remove()
        self.forget()

    def follow(self) -> None:
        """Take over parameters that were replaced.

        Raises:
            JobError: a parameter has changed so that K-FAC must be made anew.
        """
        self._listen(self._all_layers.parameters.follow())

    def take(self, scale: float) -> Tensor:
        """The sums so far, flat, those of gradients times scale; and forget them."""
        flat, self._flat = self._flat, None
        if flat is None:  # nothing was recorded
            flat = fresh.zeros(self._buffer.numel, *memory_of(self._layers))
        else:
            for i, layer in self._recorded:
                sums = self._sums[layer]
                sums.g.mul_(scale)
                flat[self._buffer.pieces[i].stop - 1] = sums.rows
        self.forget()
        return flat

    def forget(self) -> None:
        """Drop what was recorded since the last ``take``."""
        self._flat, self._sums, self._pending = None, {}, []
        self._passed = self._returned = 0
        self._accumulated = False

    def sample(
        self, outputs: Tensor, distribution: Distribution, terms: float, generator: torch.Generator | None = None
    ) -> None:
        """Draw targets from the model's own predictive distribution and record the gradients of their loss, a mean over
        ``terms``, by a backward pass of its own that leaves the parameters' gradients alone.
        """
        if not self._pending or self._draws is None:
            return
        generator = generator or self._draws.next()
        gradient = sampled_gradient(outputs.detach(), distribution, generator) / terms
        edges = [edge for _, _, edge, _ in self._pending]
        gradients = torch.autograd.grad(outputs, edges, gradient, retain_graph=True, allow_unused=True)
        for (layer, source, _, part), g in zip(self._pending, gradients, strict=True):
            if g is not None:
                self._add(layer, source, g, part)
        self._pending = []

    def _active(self) -> bool:
        return not self._paused and torch.is_grad_enabled() and self._wanted()

    def _listen(self, layers: Iterable[Layer]) -> None:
        for layer in layers:
            self._handles.append(after_accumulation(layer.weight, self._note))

    def _note(self, _parameter: nn.Parameter) -> None:
        self._accumulated = True

    def _begin(self, module: nn.Module, _args: Any) -> None:
        """Before a forward pass: what was recorded with gradients that have been dropped since, as after an error that
        the loop caught, is dropped with them.
        """
        if module is not self._model or not self._active():
            return
        self.follow()
        if self._accumulated and not any(map(_has_gradient, self._layers)):
            self.forget()

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module is not self._model or not self._active():
            return
        samples = next((len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim), 0)
        self._passed += samples
        left = [samples]

        def returned(_gradient: Tensor) -> None:
            self._returned += left[0]
            left[0] = 0

        for y in tree_leaves(output):
            if isinstance(y, Tensor) and y.grad_fn is not None:
                y.register_hook(returned)  # type: ignore[no-untyped-call]

    def _used(self, layer: Layer, x: Tensor, output: Tensor, part: int) -> None:
        source = self._inputs.setdefault(id(x), Input(x))  # an input is there as long as its tensor
        source.users += 1
        if self._draws is not None:
            self._pending.append((layer, source, get_gradient_edge(output), part))
        else:
            held = [source]  # hooks live as long as the whole graph: what it has done with is let go

            def add_use(gradient: Tensor) -> None:
                self._add(layer, held[0], gradient, part)
                if not _keeps_graph():
                    held.clear()

            output.register_hook(add_use)  # type: ignore[no-untyped-call]

    def _add(self, layer: Layer, source: Input, gradient: Tensor, part: int) -> None:
        with self.products():
            add(layer, self._into(layer), source, gradient, part)
            if self.also is not None and gradient.numel():
                self.also(layer, source.x, gradient)

    def _into(self, layer: Layer) -> Sums:
        if self._flat is None:
            self._flat = fresh.zeros(self._buffer.numel, *memory_of(self._layers))
            for i, other in self._recorded:
                self._sums[other] = Sums(*split(other, self._flat[self._buffer.pieces[i]]))
        return self._sums[layer]


def _has_gradient(layer: Layer) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def _keeps_graph() -> bool:
    """Whether the running backward pass may be followed by another through the same graph."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())
