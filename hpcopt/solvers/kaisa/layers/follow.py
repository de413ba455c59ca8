"""What a program may do to a model's parameters once K-FAC was made for them.

A parameter that another of its kind replaces, as ``load_state_dict(assign=True)`` does, is taken over, and one that is
frozen has no gradient to be preconditioned. What would need other buffers, or has become another formula, is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hpcopt.errors import JobError
from hpcopt.solvers.kaisa.layers.known import FROZEN, PARTLY_FROZEN
from hpcopt.solvers.kaisa.layers.layer import Layer


@dataclass
class Slot:
    """Where a module keeps a parameter, and how that was."""

    module: nn.Module
    module_name: str
    name: str
    parameter: nn.Parameter
    kind: tuple[object, ...]
    trained: bool

    @property
    def full_name(self) -> str:
        return f"{self.module_name}.{self.name}".lstrip(".")


class Parameters:
    """A model's, as they were when this was made or last looked at."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], skipped: Mapping[str, str]) -> None:
        self._of_layers = {id(p) for layer in layers for p in layer.parameters()}
        self._layers, self._skipped = layers, skipped
        self._slots = [
            Slot(module, module_name, name, p, kind_of(p), p.requires_grad)
            for module_name, module in model.named_modules()
            for name, p in module.named_parameters(recurse=False)
        ]

    def follow(self) -> Iterator[Layer]:
        """Take over what was replaced; give the layers that it happened to.

        Raises:
            JobError: a parameter has changed so that K-FAC must be made anew.
        """
        for slot in self._slots:
            p = slot.module._parameters.get(slot.name)
            if p is slot.parameter and p.requires_grad == slot.trained and kind_of(p) == slot.kind:
                continue
            if p is None or kind_of(p) != slot.kind:
                self._require_foreign(slot, p)
            if p is not None:
                self._require_known(slot, p)
                yield from self._replace(slot.parameter, p)
                slot.parameter, slot.trained, slot.kind = p, p.requires_grad, kind_of(p)

    def _require_foreign(self, slot: Slot, p: nn.Parameter | None) -> None:
        if id(slot.parameter) in self._of_layers:
            now = "is computed from other parameters" if p is None else f"is {_text(p)}"
            raise JobError(
                f"{slot.full_name} {now} and was {_text(slot.parameter, slot.kind)} when Kaisa was made: "
                "make Kaisa after the model is as it will be trained"
            )

    def _require_known(self, slot: Slot, p: nn.Parameter) -> None:
        unfrozen = p.requires_grad and not slot.trained
        if unfrozen and self._skipped.get(slot.module_name) in (FROZEN, PARTLY_FROZEN):
            raise JobError(
                f"{slot.full_name} was frozen when Kaisa was made and is trained now: remove() this Kaisa and make it "
                f"again, or leave the layer to the inner optimizer with skip = {[slot.module_name]!r}"
            )

    def _replace(self, old: nn.Parameter, new: nn.Parameter) -> Iterator[Layer]:
        if new is old:
            return
        for layer in self._layers:
            if layer.weight is old:
                layer.weight = new
                yield layer
            if layer.bias is old:
                layer.bias = new
        if id(old) in self._of_layers:
            self._of_layers.add(id(new))


def kind_of(p: nn.Parameter) -> tuple[object, ...]:
    """What buffers depend on: shape, device, and whether it is of double precision."""
    return p.shape, p.device, p.dtype == torch.float64


def _text(p: nn.Parameter, kind: tuple[object, ...] | None = None) -> str:
    shape, device, double = kind or kind_of(p)
    assert isinstance(shape, torch.Size)
    return f"{tuple(shape)} in {'double' if double else 'single or half'} precision on {device}"
