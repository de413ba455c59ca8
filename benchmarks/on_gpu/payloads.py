"""Whether codecs make the CPU's bytes on the device, and read them alike."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.on_gpu.rates import CODECS, label
from benchmarks.on_gpu.rig import Rig, Row, alike
from hpcopt.compress import Codec
from hpcopt.errors import NonFiniteError

SEED = (5 << 40) + (3 << 31) + 17  # both words have their upper bits set


def rows(rig: Rig) -> Iterator[Row]:
    """A row a codec."""
    sizes = rig.size((0, 1, 7, 511, 512, 513, 4097, 1_000_000), (65,))
    for codec in CODECS:
        wrong = [
            f"{name} of {n}: {how}"
            for n in sizes
            for name, x in list(inputs(n).items())[: rig.size(6, 2)]
            for how in _differences(codec, x, rig)
        ]
        yield alike(f"payloads of {label(codec)}", not wrong, "; ".join(wrong[:3]))


def inputs(n: int) -> dict[str, Tensor]:
    """Values that rounding, scales and sums could treat in more than one way, (n,) each."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    zeros, mixed = x.clone(), x.clone()
    zeros[::3], zeros[1::5] = 0.0, -0.0
    mixed[: n // 2] *= 1e-30
    mixed[512:] *= 1e-38
    return {
        "Gaussian": x,
        "zeros of both signs": zeros,
        "denormal": x * 1e-40,
        "sums that overflow": x.sign() * 3e38,
        "mixed magnitudes": mixed,
        "ties": (4 * x).round(),
    }


def _differences(codec: Codec, x: Tensor, rig: Rig) -> Iterator[str]:
    """How a payload of x, (n,), made on the device differs from the CPU's."""
    there = x.to(rig.device)
    try:
        expected = codec.encode(x, seed=SEED, first=2048)
    except NonFiniteError:
        try:
            codec.encode(there, seed=SEED, first=2048)
        except NonFiniteError:
            return
        yield "not refused"
        return
    payload = codec.encode(there, seed=SEED, first=2048)
    if not torch.equal(payload.cpu(), expected):
        yield "other bytes"
        return
    ours, theirs = torch.ones_like(there), torch.ones_like(x)
    codec.decode_add(payload, ours)
    codec.decode_add(expected, theirs)
    if not torch.equal(ours.cpu(), theirs):
        yield "read otherwise"
