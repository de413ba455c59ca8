"""A tensor cut into parts, each with a payload of its own: what all ranks get of it, in one sweep.

On a GPU a codec that works ``in_parts`` asks for as many launches for a thousand parts as for one; in main memory, and
for other codecs, parts come one after the other. Either way part p has the payload that the codec gives it alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpcopt.compress.codec import ALIGNMENT, NOT_FINITE, Codec, on_host, require_finite
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut


class Payloads(NamedTuple):
    """Of every part.

    Attributes:
        memory: the slots and, behind them, whether there was Inf or NaN: what one copy brings to main memory. uint8.
        stride: bytes of a slot.
        lengths: bytes of each payload, at the head of its slot.
    """

    memory: Tensor
    stride: int
    lengths: Sequence[int]

    @property
    def slots(self) -> Tensor:
        """Shape (parts, stride), uint8."""
        return self.memory[:-ALIGNMENT].view(len(self.lengths), self.stride)

    def at(self, memory: Tensor) -> "Payloads":
        """The same payloads in a copy."""
        return self._replace(memory=memory)

    def require_finite(self, codec: Codec) -> None:
        """Raise NonFiniteError if there was Inf or NaN. Waits for the device, unless the memory is a copy in main
        memory.
        """
        if not codec.carries_not_finite:
            require_finite(NOT_FINITE if int(self.memory[-ALIGNMENT:].view(torch.int32)[0]) else 0, codec)


def stride_bytes(codec: Codec, n: int) -> int:
    """Of slots for payloads of at most n values."""
    return -(-codec.max_bytes(n) // ALIGNMENT) * ALIGNMENT


def at_once(codec: Codec, x: Tensor) -> bool:
    """Whether all parts of x are worked on in one sweep."""
    return codec.in_parts and not on_host(x)


def encode(codec: Codec, x: Tensor, cut: Cut, *, seed: int, first: int = 0, residual: Tensor | None = None) -> Payloads:
    """Turn x, shape (n,), float32, into the payloads of its parts; ``first`` is the index of x[0] in the whole tensor.

    A residual, (n,), as in ``Codec.encode_feedback``, where parts are not worked on at once.

    Raises:
        NonFiniteError: x holds Inf or NaN; where that would have to be waited for, only ``require_finite`` tells.
    """
    stride, stretches = stride_bytes(codec, cut.longest), cut.stretches()
    memory = torch.empty(cut.parts * stride + ALIGNMENT, dtype=torch.uint8, device=x.device)
    memory[-ALIGNMENT:].zero_()
    sweep = at_once(codec, x)
    lengths = [codec.max_bytes(s.stop - s.start) if sweep and s.stop > s.start else 0 for s in stretches]
    payloads = Payloads(memory, stride, lengths)
    if sweep:
        worst = memory[-ALIGNMENT:].view(torch.int32)[:1]
        codec._encode_parts(x.detach(), cut, payloads.slots, seed, first, worst)
        return payloads
    for part, s in enumerate(stretches):
        owed = None if residual is None else residual[s]
        payload = codec.encode_feedback(x[s], owed, seed=seed, first=first + s.start, out=payloads.slots[part])
        lengths[part] = payload.numel()
    return payloads


def decode(
    codec: Codec,
    slots: Tensor,
    lengths: Sequence[int],
    cut: Cut,
    out: Tensor,
    *,
    weight: float = 1.0,
    add: bool = False,
) -> None:
    """Turn payloads, in slots of shape (parts, stride), back into values, each in its part of out, shape (n,); or add
    weight times the values. Where a length is 0 there is no payload, and the part is of no interest.
    """
    if at_once(codec, out):
        codec._decode_parts(slots, cut, out.detach(), weight, add)
        return
    for slot, length, s in zip(slots, lengths, cut.stretches(), strict=True):
        if length and add:
            codec.decode_add(slot[:length], out[s], weight)
        elif length:
            codec.decode(slot[:length], s.stop - s.start, out=out[s])


def add_rows(rows: Tensor, out: Tensor, after: int) -> None:
    """Add the rows of a matrix, (parts, n), to out, (n,): that before row ``after`` first, then the one before, and so
    on around to the one behind it; row ``after`` itself is left out.
    """
    if not on_host(out):
        cuda.sums.add_rows(rows, out, after)
        return
    for distance in range(1, len(rows)):
        out += rows[(after - distance) % len(rows)]
