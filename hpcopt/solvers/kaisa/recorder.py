"""From the hooks to the sums of one factor step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hpcopt.solvers.kaisa import fresh
from hpcopt.solvers.kaisa.averages import split
from hpcopt.solvers.kaisa.layers.find import Layers, add
from hpcopt.solvers.kaisa.layers.layer import Input, Layer, Sums
from hpcopt.solvers.kaisa.plan import Buffer

Distribution = Literal["categorical", "bernoulli", "gaussian"]


class Recorder:
    """Adds up statistics while the model runs.

    Attributes:
        also: called as well, with a layer, its input and the gradient of its output.
        terms: samples that went through the model since the last ``take``, by its first input's first dimension.
    """

    def __init__(self, model: nn.Module, layers: Layers, buffer: Buffer, sampled: bool, wanted: Callable[[], bool]):
        self._layers, self._buffer, self._sampled, self._wanted = layers.found, buffer, sampled, wanted
        self._flat: Tensor | None = None
        self._sums: dict[Layer, Sums] = {}
        self._pending: list[tuple[Layer, Input, GradientEdge, int]] = []
        self._inputs: WeakValueDictionary[int, Input] = WeakValueDictionary()  # by the id of the tensor
        self._paused = False
        self.terms = 0
        self.also: Callable[[Layer, Tensor, Tensor], None] | None = None
        layers.watch(self._active, self._used)
        self._model = model
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away for a while."""
        self._paused = True
        yield
        self._paused = False

    def take(self, scale: float) -> Tensor:
        """The sums so far, flat, those of gradients times scale; and forget them."""
        flat, self._flat = self._flat, None
        if flat is None:  # nothing was recorded
            flat = torch.zeros(self._buffer.numel, dtype=self._layers[0].dtype if self._layers else torch.float32)
        else:
            for i, layer in enumerate(self._layers):
                sums = self._sums[layer]
                sums.g.mul_(scale)
                flat[self._buffer.pieces[i].stop - 1] = sums.rows
        self._sums, self._pending, self.terms = {}, [], 0
        return flat

    def sample(
        self, outputs: Tensor, distribution: Distribution, terms: float, generator: torch.Generator | None = None
    ) -> None:
        """Draw targets from the model's own predictive distribution and record the gradients of their loss, a mean over
        ``terms``, by a backward pass of its own that leaves the parameters' gradients alone.
        """
        if not self._pending:
            return
        gradient = _sampled_gradient(outputs.detach(), distribution, generator) / terms
        edges = [edge for _, _, edge, _ in self._pending]
        gradients = torch.autograd.grad(outputs, edges, gradient, retain_graph=True, allow_unused=True)
        for (layer, source, _, first), g in zip(self._pending, gradients, strict=True):
            if g is not None:
                self._add(layer, source, g, first)
        self._pending = []

    def _active(self) -> bool:
        return not self._paused and torch.is_grad_enabled() and self._wanted()

    def _count(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if module is self._model and self._active():
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim]
            self.terms += len(tensors[0]) if tensors else 0

    def _used(self, layer: Layer, x: Tensor, output: Tensor, first: int) -> None:
        source = self._inputs.setdefault(id(x), Input(x))  # an input is there as long as its tensor
        source.users += 1
        if self._sampled:
            self._pending.append((layer, source, get_gradient_edge(output), first))
        else:
            held = [source]  # hooks live as long as the whole graph: what it has done with is let go

            def add_use(gradient: Tensor) -> None:
                self._add(layer, held[0], gradient, first)
                if not _keeps_graph():
                    held.clear()

            output.register_hook(add_use)  # type: ignore[no-untyped-call]

    def _add(self, layer: Layer, source: Input, gradient: Tensor, first: int) -> None:
        add(layer, self._into(layer), source, gradient, first)
        if self.also is not None:
            self.also(layer, source.x, gradient)

    def _into(self, layer: Layer) -> Sums:
        if self._flat is None:
            self._flat = fresh.zeros(self._buffer.numel, layer.dtype)
            for i, other in enumerate(self._layers):
                self._sums[other] = Sums(*split(other, self._flat[self._buffer.pieces[i]]))
        return self._sums[layer]


def _keeps_graph() -> bool:
    """Whether the running backward pass may be followed by another through the same graph."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())


def _sampled_gradient(outputs: Tensor, distribution: Distribution, generator: torch.Generator | None) -> Tensor:
    """Gradient of a sampled target's negative log-likelihood by the outputs: logits, or means of unit variance."""
    if distribution == "categorical":
        p = outputs.softmax(-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(*p.shape[:-1], 1)
        return p.scatter_add(-1, drawn, -torch.ones_like(drawn, dtype=p.dtype))
    if distribution == "bernoulli":
        p = outputs.sigmoid()
        return p - torch.bernoulli(p, generator=generator)
    return torch.randn(outputs.shape, dtype=outputs.dtype, generator=generator)
