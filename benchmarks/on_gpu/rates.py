"""How fast codecs are: a ratio of 1 is as many bytes of float32 a second as a copy on the device, by its own clock, in
alternating repeats. What ``encode`` waits for is in it.
"""

from collections.abc import Iterator

import torch

from benchmarks.on_gpu.rig import Rig, Row, at_least
from hpcopt.compress import (
    QSGD,
    BiasedRounding,
    Codec,
    Dense,
    ExponentialDithering,
    Half,
    Natural,
    RandomK,
    Sign,
    SignBits,
    TernGrad,
    TopK,
)

CODECS: dict[Codec, float | None] = {  # and the ratio that encoding should reach
    Dense(): None,
    Half(): None,
    SignBits(): 0.5,
    Sign(): 0.5,
    QSGD(bits=4): 0.4,
    QSGD(bits=8): None,
    QSGD(norm="l2"): None,
    TernGrad(): None,
    TernGrad(clip=2.5): None,
    Natural(): None,
    BiasedRounding(): None,
    ExponentialDithering(): None,
    TopK(): None,
    TopK(threshold="sampled"): 0.15,
    RandomK(): None,
}


def label(codec: Codec) -> str:
    """Its name and what is not as by default."""
    return codec.name + str(codec.model_dump(exclude_defaults=True, exclude={"name"}) or "")


def rows(rig: Rig) -> Iterator[Row]:
    """Two rows a codec."""
    x = rig.draw(rig.size(64_000_000, 600))
    out, other = torch.zeros_like(x), torch.empty_like(x)
    for codec, goal in CODECS.items():
        if rig.rehearsed and goal is None:
            continue
        slot = torch.zeros(codec.max_bytes(x.numel()), dtype=torch.uint8, device=rig.device)
        payload = codec.encode(x, seed=1, out=slot).clone()
        runs = {
            "encode": lambda codec=codec, slot=slot: codec.encode(x, seed=1, out=slot),
            "decode": lambda codec=codec, payload=payload: codec.decode_add(payload, out),
        }
        for what, run in runs.items():
            took_s, copy_s = rig.beside(run, lambda: other.copy_(x))
            told = f"{what} {label(codec)}, of a copy"
            ratio = copy_s / took_s
            yield Row(told, ratio) if goal is None or what == "decode" else at_least(told, ratio, goal)
