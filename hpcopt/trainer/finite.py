"""Whether parameters and their optimizers' state are finite: nothing else is worth a checkpoint."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hpcopt.comm.world import World


def not_finite(world: World, tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Of tensors by name, name one that holds Inf or NaN on some rank, the same on all, or None. Collective; reads all
    values once.
    """
    mine = next((name for name, tensor in tensors if not _is_finite(tensor)), "")
    everyones = world.gather_text(mine)
    return next((f"{name} on rank {rank}" for rank, name in enumerate(everyones) if name), None)


def _is_finite(tensor: Tensor) -> bool:
    """One pass without a copy: both ends of the range are NaN if any value is."""
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    if not values.is_floating_point() or values.numel() == 0:
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(values))
