"""Looking inside a network: its layers by name, and what they give."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpcopt.analysis.explain.question import Question
from hpcopt.errors import JobError

SHOWN = 12


def layer_named(model: nn.Module, name: str) -> nn.Module:
    """The layer of a network by its dotted name, as ``model.named_modules()`` has it.

    Raises:
        JobError: it has none of this name; the message says which there are.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    layers.pop("")
    if name in layers:
        return layers[name]
    near = difflib.get_close_matches(name, layers, 3)
    there = list(layers) if len(layers) <= SHOWN else [*list(layers)[:SHOWN], f"{len(layers) - SHOWN} more"]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise JobError(f'the network has no layer "{name}"; {hint}it has {", ".join(there)}')


@contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """While entered, keep what a layer gives at each call; who comes after it gets a copy, and may change that."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen.append(output)
        return output.clone()

    handle = layer.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def map_layer(q: Question, method: str) -> nn.Module:
    """The layer whose maps a class activation map is made of: the one that is asked for, else the last one that gives
    maps of more than one place.

    Raises:
        JobError: it gives no maps, or the network has no convolution.
    """
    gave = _maps(q)
    if q.layer is not None:
        if q.layer not in gave:
            raise JobError(
                f"{method} needs a layer that gives maps, (n, channels, height, width), and this one does not"
            )
        return q.layer
    if not any(isinstance(m, nn.Conv2d) for m in q.model.modules()) or not gave:
        raise JobError(f"{method} needs a convolution, and the network has none: use integrated, occlusion or lime")
    return gave[-1]


def _maps(q: Question) -> list[nn.Module]:
    """The layers that give maps of more than one place, as they end in a forward pass."""
    gave: list[nn.Module] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
            gave.append(module)

    handles = [m.register_forward_hook(look) for m in q.model.modules() if m is not q.model]
    try:
        with torch.no_grad():
            first = q.row(0)
            first.forward(first.x)
    finally:
        for handle in handles:
            handle.remove()
    return gave
