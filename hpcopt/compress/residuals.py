"""Flat buffers whose stretches belong to parameters.

A codec works on flat buckets; what it holds back belongs to parameters. Here a bucket's state is one flat tensor, and
each parameter's part is a view of it, so that checkpoints know names only and buckets may be cut anew at any time.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from hpcopt.errors import CheckpointError

Layout = Mapping[str, tuple[int, ...]]  # the parameters of a flat bucket in order, with their shapes


def layout_numel(layout: Layout) -> int:
    """The number of values in a bucket of this layout."""
    return sum(prod(shape) for shape in layout.values())


def views(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The parameters' parts of a flat bucket, as views in their shapes."""
    parts = torch.split(flat, [prod(shape) for shape in layout.values()])
    return {name: part.view(shape) for (name, shape), part in zip(layout.items(), parts, strict=True)}


class Residuals:
    """One float32 tensor a parameter, zero at first, stored flat by bucket.

    >>> residuals = Residuals()
    >>> _ = residuals.flat({"weight": (2, 2), "bias": (2,)}, torch.device("cpu")).fill_(1.0)
    >>> residuals.flat({"bias": (2,)}, torch.device("cpu"))  # in another bucket now, and still owed
    tensor([1., 1.])
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, ...], Tensor] = {}
        self._parts: dict[str, Tensor] = {}

    def flat(self, layout: Layout, device: torch.device) -> Tensor:
        """The flat tensor of a bucket, to be changed in place; parameters keep what they held in other buckets, or were
        given by a checkpoint, on whatever device.
        """
        key = tuple(layout)
        bucket = self._buckets.get(key)
        if bucket is None or bucket.numel() != layout_numel(layout) or bucket.device != device:
            bucket = torch.zeros(layout_numel(layout), device=device)
            for name, part in views(bucket, layout).items():
                if name in self._parts:
                    _require_shape(name, self._parts[name], part)
                    part.copy_(self._parts[name])
                self._parts[name] = part
            self._buckets = {other: flat for other, flat in self._buckets.items() if not set(other) & set(key)}
            self._buckets[key] = bucket
        return bucket

    def settle(self, values: Tensor, layout: Layout) -> None:
        """Add to a bucket what is owed for it, which then is owed no more."""
        owed = {name: part for name, part in views(values, layout).items() if name in self._parts}
        for name, part in owed.items():
            _require_shape(name, self._parts[name], part)
            part += self._parts.pop(name).to(part.device)
        self._buckets = {key: flat for key, flat in self._buckets.items() if not owed.keys() & set(key)}

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by parameter name (views, not copies)."""
        return dict(self._parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a ``state_dict``; parameters that it does not name begin at zero."""
        self._buckets = {}
        self._parts = {name: tensor.clone() for name, tensor in state.items()}


def _require_shape(name: str, held: Tensor, part: Tensor) -> None:
    if held.shape != part.shape:
        asked = tuple(part.shape)
        raise CheckpointError(f"state of {name!r} has shape {tuple(held.shape)}, the model has {asked}")
