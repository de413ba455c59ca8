"""A number that a GPU has yet to compute."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.pinned import Pool, Slot, passed

_POOL = Pool()


class Late:
    """A sum of tensors (), each times a weight, on its way to main memory, where it is added up in double precision.

    ``float`` waits until it is there. Who asks a step later waits for nothing.
    """

    def __init__(self, parts: Sequence[Tensor], weight: float = 1.0) -> None:
        """Let the parts travel behind what the current stream of their device has been given."""
        x = (torch.stack(list(parts)) if len(parts) > 1 else parts[0].reshape(1)).detach()
        self._slot: Slot | None = _POOL.lend(x)
        self._slot.host.copy_(x, non_blocking=True)
        self._passed, self._weight, self._value = passed(x.device), weight, 0.0

    def __float__(self) -> float:
        if self._slot is not None:
            self._passed.synchronize()
            self._value = _added(self._slot.host, self._weight)
            self._slot.give_back()
            self._slot = None
        return self._value


def total(parts: Sequence[Tensor], weight: float = 1.0) -> float | Late:
    """The sum of tensors (), each times a weight: known at once in main memory, and late on a device."""
    if parts and not parts[0].is_cpu:
        return Late(parts, weight)
    return sum((x.item() * weight for x in parts), 0.0)


def _added(parts: Tensor, weight: float) -> float:
    return sum((x * weight for x in parts.tolist()), 0.0)
