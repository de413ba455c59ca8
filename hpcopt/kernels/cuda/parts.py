"""A tensor cut into parts, each of which has a slot of its own: one launch works on all of them.

Part p of n values begins at ``grain * (p * each + min(p, longer))``, as ``Cut`` has it; its slot begins p strides
after the first. A part has as many programs as the longest one needs; those that it has no values for do
nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcopt.kernels.cut import Cut

SIZES = ["n", "each", "longer", "grain", "stride", "programs"]  # of no interest to the compiler


@triton.jit
def part_of(n, each, longer, grain, programs):
    """Which part this program works on, which of the part's programs it is, and where the part begins and ends."""
    part = (tl.program_id(0) // programs).to(tl.int64)
    begin = tl.minimum((part * each + tl.minimum(part, longer)) * grain, n)
    end = tl.minimum(((part + 1) * each + tl.minimum(part + 1, longer)) * grain, n)
    return part, (tl.program_id(0) % programs).to(tl.int64), begin, end - begin


@triton.jit
def write(out, k, value, inside, ADD: tl.constexpr):
    """Put values where they belong, or add what is there to them."""
    if ADD:
        value = tl.load(out + k, mask=inside, other=0.0) + value
    tl.store(out + k, value, mask=inside)


def sizes(cut: Cut, slots: Tensor, block: int) -> tuple[int, ...]:
    """What ``part_of`` is told; slots has shape (parts, stride), and a program takes a block."""
    return cut.n, cut.each, cut.longer, cut.grain, slots.shape[1], -(-cut.longest // block)


def programs(cut: Cut, block: int) -> int:
    """Of all parts."""
    return cut.parts * -(-cut.longest // block)


def seen_as(slots: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory of slots in values of four bytes, flat."""
    flat = slots.view(-1)
    return flat[: flat.numel() // 4 * 4].view(dtype)


def bits_of(weight: float) -> int:
    """Of a float64: Triton would round a number to float32."""
    return int(torch.tensor(weight, dtype=torch.float64).view(torch.int64))
