"""Large buffers that live for a part of a step.

The C library returns large blocks to the system, and every page that it asks for anew is a fault, which costs more than
all arithmetic on it. On huge pages there are 512 times fewer.
"""

import contextlib
import mmap

import torch
from torch import Tensor

HUGE_BYTES = 2 << 20


def zeros(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give zeros of shape (numel,), in main memory on huge pages if there are many and the system has such pages."""
    if device.type != "cpu" or numel * dtype.itemsize < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(numel, dtype=dtype, device=device)
    area = mmap.mmap(-1, numel * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=dtype)
