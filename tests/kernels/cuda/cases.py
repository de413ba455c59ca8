"""Payloads made and read by the loops for a GPU, held against those of the CPU's, byte for byte."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from hpcopt.compress import QSGD, Codec, ExponentialDithering, TernGrad, codec, parts
from hpcopt.errors import NonFiniteError
from hpcopt.testing.values import gaussian
from tests.compress.properties import CODECS

ON_DEVICE = [c for c in CODECS if c.on_device] + [
    QSGD(bits=6, norm="l2", bucket=1024),
    TernGrad(clip=2.3),
    ExponentialDithering(bits=3),
]
SEED = (5 << 40) + (3 << 31) + 17  # both words have their upper bits set


@contextmanager
def loops_for_a_gpu() -> Iterator[None]:
    """Codecs take the way of tensors on a GPU, wherever their tensors are."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (codec, parts):
            patch.setattr(module, "on_host", lambda x: False)
        yield


def inputs(n: int) -> dict[str, Tensor]:
    x = gaussian(n)
    zeros = x.clone()
    zeros[::3], zeros[1::5] = 0.0, -0.0
    return {
        "gaussian": x,
        "zeros of both signs": zeros,
        "denormal": x * 1e-40,
        "below the smallest normal scale": x * 1e-37,
        "sums overflow": x.sign() * 3e38,
        "equal": torch.full((n,), -1.5),
    }


def mixed(n: int) -> Tensor:
    """Gaussian values, zeros of both signs and values too small for the reciprocal of their scale, side by side."""
    x = gaussian(n)
    x[::5], x[2::7] = 0.0, -0.0
    x[: n // 2] *= 1e-30
    x[512:] *= 1e-38
    return x


def check_same_bytes(c: Codec, x: Tensor, device: torch.device) -> None:
    """One payload of x on both ways, and everything that is read from it; with error feedback too."""
    n, there, first = x.numel(), x.clone().to(device), 2048
    try:
        expected = c.encode(x, seed=SEED, first=first)
    except NonFiniteError:
        with loops_for_a_gpu(), pytest.raises(NonFiniteError, match=c.name):
            c.encode(there, seed=SEED, first=first)
        return
    slot = torch.full((c.max_bytes(n) + 24,), 0xA5, dtype=torch.uint8, device=device)
    with loops_for_a_gpu():
        payload = c.encode(there, seed=SEED, first=first, out=slot)
    same(payload, expected)
    assert bool((slot[c.max_bytes(n) :] == 0xA5).all())
    same(there, x)
    for weight in (1.0, -1 / 3):
        added, added_there = torch.ones(n), torch.ones(n, device=device)
        c.decode_add(expected, added, weight)
        with loops_for_a_gpu():
            c.decode_add(slot, added_there, weight)  # a payload may travel in a longer slot
        same(added_there, added)
    with loops_for_a_gpu():
        same(c.decode(payload, n), c.decode(expected, n))
        same(c.decode(payload, n, out=torch.full((n,), 7.0, device=device)), c.decode(expected, n))
    if c.name != "sign_bits":
        owed = gaussian(n, seed=1) * float(x.abs().max() if n else 0)
        owed_there = owed.clone().to(device)
        try:
            expected = c.encode_feedback(x, owed, seed=SEED, first=first)
        except NonFiniteError:
            return
        with loops_for_a_gpu():
            same(c.encode_feedback(there, owed_there, seed=SEED, first=first), expected)
        same(owed_there, owed)


def same(there: Tensor, here: Tensor) -> None:
    assert there.shape == here.shape and there.dtype == here.dtype
    different = (there.cpu().view(-1).view(torch.uint8) != here.view(-1).view(torch.uint8)).nonzero()
    assert not len(different), f"{len(different)} bytes differ, the first at {different[0].item()} of {here.nbytes}"
