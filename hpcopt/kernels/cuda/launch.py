"""Starting a Triton kernel on the device of its first tensor."""

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, programs: int, *args: Any, **constants: int) -> None:
    """Run ``programs`` instances of a kernel.

    Of the current device only the thread that chose it knows, so it is set here; and products keep their own rounding:
    a fused multiply-add would give other bits than the CPU's.
    """
    if programs:
        with torch.cuda.device_of(args[0]):
            kernel[(programs,)](*args, **constants, enable_fp_fusion=False)


def worst_of(x: Tensor) -> Tensor:
    """Room for the bits of the largest magnitude that is not finite, int32, (1,), on the device of x: 0 if all are."""
    return torch.zeros(1, dtype=torch.int32, device=x.device)
