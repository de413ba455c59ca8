"""Codecs at the speed of memory: encoding and decoding on one core, as ratios to ``np.copyto`` of the same array in
the same run.

    python benchmarks/codecs.py [--out codecs.h5] [--sizes 1 64] [--only qsgd]

A ratio of 1 means as many bytes of float32 a second as a copy. Times are CPU seconds of the thread, medians of
alternating repeats of copy and codec, so that a busy machine slows both alike. Beside our codecs stand what one would
write in plain numpy or torch.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import torch
from peers import PEERS

from hpcopt.compress import (
    BHQ,
    PSQ,
    QSGD,
    AdaComp,
    AdaptiveRandom,
    BiasedRounding,
    Codec,
    ExponentialDithering,
    Half,
    Natural,
    PowerSGD,
    RandomK,
    Sign,
    SignBits,
    TernGrad,
    TopK,
)

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Row:
    """One operation, measured."""

    operation: str
    by: str  # hpcopt, numpy or torch
    target: float | None  # the least ratio at 64 MB
    make: Callable[[torch.Tensor], Callable[[], object]]  # x -> what is timed


def encoding(codec: Codec) -> Callable[[torch.Tensor], Callable[[], object]]:
    def make(x: torch.Tensor) -> Callable[[], object]:
        slot = torch.zeros(codec.max_bytes(x.numel()), dtype=torch.uint8)
        return lambda: codec.encode(x, seed=1, out=slot)

    return make


def decoding(codec: Codec, add: bool = False) -> Callable[[torch.Tensor], Callable[[], object]]:
    def make(x: torch.Tensor) -> Callable[[], object]:
        payload, out = codec.encode(x, seed=1), torch.zeros_like(x)
        if add:
            return lambda: codec.decode_add(payload, out)
        return lambda: codec.decode(payload, x.numel(), out=out)

    return make


def feeding_back(codec: Codec) -> Callable[[torch.Tensor], Callable[[], object]]:
    def make(x: torch.Tensor) -> Callable[[], object]:
        slot, residual = torch.zeros(codec.max_bytes(x.numel()), dtype=torch.uint8), torch.zeros_like(x)
        gradients = cycle([x.roll(977 * k) for k in range(4)])  # that differ from step to step, as in training
        for _ in range(8):
            codec.encode_feedback(next(gradients), residual, seed=1, out=slot)
        return lambda: codec.encode_feedback(next(gradients), residual, seed=1, out=slot)

    return make


def approximating(config: PowerSGD) -> Callable[[torch.Tensor], Callable[[], object]]:
    def make(x: torch.Tensor) -> Callable[[], object]:
        state, bucket = config.build(), x.clone()
        layout = {f"w{i}": (512, 512) for i in range(x.numel() >> 18)}

        def step() -> None:
            for _ in state.rounds(bucket, layout, seed=1):
                pass

        return step

    return make


ROWS = [
    Row("sign bits: pack", "hpcopt", 2.0, encoding(SignBits())),
    Row("sign bits: unpack", "hpcopt", 0.9, decoding(SignBits())),
    Row("sign bits: x -= lr sign", "hpcopt", None, decoding(SignBits(), add=True)),
    Row("sign: encode", "hpcopt", None, encoding(Sign())),
    Row("sign: encode with feedback", "hpcopt", 0.8, feeding_back(Sign())),
    Row("sign: decode", "hpcopt", None, decoding(Sign())),
    Row("qsgd 4 bits: encode", "hpcopt", 0.8, encoding(QSGD())),
    Row("qsgd 4 bits: decode", "hpcopt", 1.0, decoding(QSGD())),
    Row("qsgd 4 bits: decode and add", "hpcopt", None, decoding(QSGD(), add=True)),
    Row("qsgd 8 bits: encode", "hpcopt", None, encoding(QSGD(bits=8))),
    Row("qsgd 8 bits: decode", "hpcopt", None, decoding(QSGD(bits=8))),
    Row("psq 4 bits: encode", "hpcopt", 0.5, encoding(PSQ())),
    Row("psq 4 bits: decode", "hpcopt", 0.5, decoding(PSQ())),
    Row("psq 5 bits: encode", "hpcopt", 0.5, encoding(PSQ(bits=5))),
    Row("psq 5 bits: decode", "hpcopt", 0.5, decoding(PSQ(bits=5))),
    Row("psq 8 bits: encode", "hpcopt", 0.5, encoding(PSQ(bits=8))),
    Row("psq 8 bits: decode", "hpcopt", 0.5, decoding(PSQ(bits=8))),
    Row("bhq 4 bits: encode", "hpcopt", 0.25, encoding(BHQ())),
    Row("bhq 4 bits: decode", "hpcopt", 0.25, decoding(BHQ())),
    Row("bhq 5 bits: encode", "hpcopt", 0.25, encoding(BHQ(bits=5))),
    Row("bhq 5 bits: decode", "hpcopt", 0.25, decoding(BHQ(bits=5))),
    Row("terngrad: encode", "hpcopt", 0.8, encoding(TernGrad())),
    Row("terngrad clipped: encode", "hpcopt", None, encoding(TernGrad(clip=2.5))),
    Row("terngrad: decode", "hpcopt", None, decoding(TernGrad())),
    Row("natural: encode", "hpcopt", 0.8, encoding(Natural())),
    Row("natural: decode", "hpcopt", None, decoding(Natural())),
    Row("biased rounding: encode", "hpcopt", None, encoding(BiasedRounding())),
    Row("exponential dithering: encode", "hpcopt", None, encoding(ExponentialDithering())),
    Row("exponential dithering: decode", "hpcopt", None, decoding(ExponentialDithering())),
    Row("bf16: encode", "hpcopt", 1.0, encoding(Half())),
    Row("bf16: decode", "hpcopt", None, decoding(Half())),
    Row("fp16: encode", "hpcopt", None, encoding(Half(format="fp16"))),
    Row("top 1 % sampled: encode", "hpcopt", 0.5, encoding(TopK(threshold="sampled"))),
    Row("top 1 % exact: encode", "hpcopt", None, encoding(TopK())),
    Row("top 1 %: decode", "hpcopt", None, decoding(TopK())),
    Row("random 1 %: encode", "hpcopt", None, encoding(RandomK())),
    Row("adaptive random: encode", "hpcopt", None, encoding(AdaptiveRandom())),
    Row("adacomp 50: with feedback", "hpcopt", 0.4, feeding_back(AdaComp(bin=50))),
    Row("adacomp 500: with feedback", "hpcopt", 0.4, feeding_back(AdaComp(bin=500))),
    Row("powersgd rank 4: both rounds", "hpcopt", None, approximating(PowerSGD())),
    *(Row(operation, by, None, make) for operation, by, make in PEERS),
]


def ratio(make: Callable[[torch.Tensor], Callable[[], object]], x: torch.Tensor, repeats: int) -> tuple[float, float]:
    """The codec's speed over that of a copy, and its GB/s of float32."""
    work, copy = make(x), np.empty_like(x.numpy())
    inner = max(1, (4 << 20) // (4 * x.numel()))
    work()
    times: dict[str, list[float]] = {"copy": [], "work": []}
    for _ in range(repeats):
        for name, run in (("copy", lambda: np.copyto(copy, x.numpy())), ("work", work)):
            start = time.thread_time()
            for _ in range(inner):
                run()
            times[name].append((time.thread_time() - start) / inner)
    seconds = float(np.median(times["work"]))
    return float(np.median(times["copy"])) / seconds, 4e-9 * x.numel() / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="HDF5 file to write the table to")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 64], help="MB of float32")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="operations that contain this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in ROWS if arguments.only in row.operation]
    results = np.zeros((len(rows), len(arguments.sizes), 2))
    print(
        f"{'operation':32s} {'by':7s}",
        *(f"{size:4d} MB: ratio   GB/s" for size in arguments.sizes),
        " target",
        sep="  ",
    )
    for r, row in enumerate(rows):
        for s, size in enumerate(arguments.sizes):
            x = torch.randn(size * MEGABYTE // 4, generator=torch.Generator().manual_seed(0))
            slow = row.by != "hpcopt" and size > 8
            results[r, s] = ratio(row.make, x, max(3, arguments.repeats // 5) if slow else arguments.repeats)
        target = (
            ""
            if row.target is None
            else f"{row.target:.1f} {'reached' if results[r, -1, 0] >= row.target else 'MISSED'}"
        )
        print(
            f"{row.operation:32s} {row.by:7s}",
            *(f"{a:14.2f} {b:6.1f}" for a, b in results[r]),
            f" {target}",
            sep="  ",
            flush=True,
        )
    if arguments.out:
        with h5py.File(arguments.out, "w") as file:
            file.attrs["machine"] = f"{platform.machine()} {processor()}"
            file.attrs["versions"] = f"torch {torch.__version__}, numpy {np.__version__}"
            file["operation"], file["by"] = [row.operation for row in rows], [row.by for row in rows]
            file["size_bytes"] = np.array(arguments.sizes) * MEGABYTE
            file["ratio_to_copyto"], file["float32_gb_per_s"] = results[..., 0], results[..., 1]
            file["target"] = [np.nan if row.target is None else row.target for row in rows]


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        with open("/proc/cpuinfo") as info:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
