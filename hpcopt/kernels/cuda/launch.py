"""Starting a Triton kernel on the device of its first tensor."""

from typing import Any

import torch


def launch(kernel: Any, programs: int, *args: Any, **constants: int) -> None:
    """Run ``programs`` instances of a kernel.

    Of the current device only the thread that chose it knows, so it is set here; and products keep their own rounding:
    a fused multiply-add would give other bits than the CPU's.
    """
    if programs:
        with torch.cuda.device_of(args[0]):
            kernel[(programs,)](*args, **constants, enable_fp_fusion=False)
