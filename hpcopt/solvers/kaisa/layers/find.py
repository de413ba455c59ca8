"""Find the layers of a model that K-FAC knows, and listen to their use.

A layer's input and the gradient of its output meet in a hook on the output tensor, so that each use is counted once and
as often as backward comes by: layers used several times or not at all, in-place activations and activation
checkpointing need no special care. An output that nothing backpropagates through leaves no trace.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from hpcopt.solvers.kaisa.layers.attention import PackedProjection, WatchedAttention
from hpcopt.solvers.kaisa.layers.conv import Conv
from hpcopt.solvers.kaisa.layers.embedding import Embedding
from hpcopt.solvers.kaisa.layers.layer import Input, Layer, Options, Sums
from hpcopt.solvers.kaisa.layers.norm import ScaleShift

KINDS: list[tuple[tuple[type[nn.Module], ...], Callable[..., Layer]]] = [
    ((nn.Linear,), Layer),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), Conv),
    ((nn.Embedding,), Embedding),
    ((nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), ScaleShift),
]

OnUse = Callable[[Layer, Tensor, Tensor, int], None]


class Layers:
    """The layers of a model, in its order.

    Attributes:
        found: those that are preconditioned.
        skipped: names of modules with parameters of their own that are not, and why.
    """

    def __init__(self, model: nn.Module, options: Options, skip: Sequence[str] = ()) -> None:
        """Look at every module whose name, or class, no pattern of ``skip`` is found in."""
        self.found: list[Layer] = []
        self.skipped: dict[str, str] = {}
        self._watches: list[tuple[nn.Module, Layer] | WatchedAttention] = []
        of_weight: dict[int, Layer] = {}
        inside_attention: set[nn.Module] = set()
        for name, module in sorted(model.named_modules(), key=lambda item: isinstance(item[1], nn.Embedding)):
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            if not own or module in inside_attention:
                continue
            if any(re.search(pattern, name) or re.search(pattern, type(module).__name__) for pattern in skip):
                self.skipped[name] = "skip"
                inside_attention |= set(module.children()) if isinstance(module, nn.MultiheadAttention) else set()
            elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                attention = WatchedAttention(name, module, options)
                inside_attention.add(module.out_proj)
                self.found += attention.layers
                self._watches.append(attention)
            elif (kind := _kind(module)) is not None and len(own) == len(list(module.parameters(recurse=False))):
                tied = of_weight.get(id(module.weight))
                if tied is None:
                    layer = of_weight[id(module.weight)] = kind(name, module, options)
                    self.found.append(layer)
                    self._watches.append((module, layer))
                elif isinstance(tied, Embedding) or not isinstance(module, nn.Embedding):  # an output layer tells more
                    self._watches.append((module, tied))
            else:
                self.skipped[name] = f"{type(module).__name__} is not known, or part of it is frozen"
        order = {id(p): i for i, p in enumerate(model.parameters())}
        self.found.sort(key=lambda layer: order[id(layer.weight)])

    def watch(self, active: Callable[[], bool], on_use: OnUse) -> None:
        """Call ``on_use(layer, input, output, first)`` after every use of a layer while ``active()``."""
        for watched in self._watches:
            if isinstance(watched, WatchedAttention):
                watched.watch(active, on_use)
            else:
                module, layer = watched
                module.register_forward_hook(_hook(module, layer, active, on_use))


def add(layer: Layer, sums: Sums, source: Input, gradient: Tensor, first: int) -> None:
    """Add a use that ``watch`` told of, once its gradient is there."""
    if isinstance(layer, PackedProjection):
        layer.record_part(sums, source.x, gradient, first)
    elif type(layer) is Layer:
        source.add_to(sums, layer)
        layer.record_gradient(sums, gradient.detach())
    else:
        layer.record(sums, source.x, gradient)


def _kind(module: nn.Module) -> Callable[..., Layer] | None:
    for classes, kind in KINDS:
        if isinstance(module, classes):
            sparse = isinstance(module, nn.Embedding) and module.sparse
            return None if sparse or module.weight is None else kind
    return None


def _hook(
    watched: nn.Module, layer: Layer, active: Callable[[], bool], on_use: OnUse
) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if module is watched and output.requires_grad and active():  # a copy of the model has this hook too
            on_use(layer, args[0], output, 0)

    return hook
