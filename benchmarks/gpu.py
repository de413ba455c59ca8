"""Codecs on a GPU: whether payloads have the bytes of the CPU's, and rates of encoding and decoding as ratios to a copy
of the same array on the device in the same run.

    python benchmarks/gpu.py [--mb 256] [--only qsgd]
    python benchmarks/gpu.py --device cpu --mb 4      a dry check where there is no card: the CPU's loops

A ratio of 1 means as many bytes of float32 a second as a copy. Times are by CUDA events (on the CPU by the wall clock),
medians of alternating repeats of copy and codec. What ``encode`` waits for is in them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hpcopt.comm.device import device_name
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

TARGETS: dict[Codec, float | None] = {
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
REPEATS = 21


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """One run's time."""
    if device.type == "cpu":
        start_s = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start_s)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def beside_copies(run: Callable[[], object], copy: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Median milliseconds of a run, and of the copies made between its repeats."""
    run()
    pairs = [(milliseconds(run, device), milliseconds(copy, device)) for _ in range(REPEATS)]
    return statistics.median(t for t, _ in pairs), statistics.median(t for _, t in pairs)


def row(codec: Codec, target: float | None, x: Tensor, expected: Tensor) -> str:
    device, n = x.device, x.numel()
    slot = torch.zeros(codec.max_bytes(n), dtype=torch.uint8, device=device)
    out, other = torch.zeros_like(x), torch.empty_like(x)
    payload = codec.encode(x, seed=1, out=slot)
    same = torch.equal(payload.cpu(), expected)
    cells = [codec.name + str(codec.model_dump(exclude_defaults=True, exclude={"name"}) or ""), "yes" if same else "NO"]
    for run in (lambda: codec.encode(x, seed=1, out=slot), lambda: codec.decode_add(payload, out)):
        took_ms, copy_ms = beside_copies(run, lambda: other.copy_(x), device)
        cells += [f"{4e-6 * n / took_ms:.1f}", f"{copy_ms / took_ms:.2f}"]
    return " | ".join([*cells, "" if target is None else f"{target:g}"])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda", help="cuda, or cpu for a dry check")
    p.add_argument("--mb", type=float, default=256, help="float32 values; more than the card's caches hold")
    p.add_argument("--only", default="", help="codecs whose name has this in it")
    options = p.parse_args()
    device = torch.device(options.device)
    host = torch.randn(int(options.mb * 1e6) // 4, generator=torch.Generator().manual_seed(0))
    print(f"{device_name(device)}, {options.mb:g} MB, torch {torch.__version__}\n")
    print("codec | bytes equal | encode GB/s | ratio | decode GB/s | ratio | goal")
    print("--- | --- | --- | --- | --- | --- | ---")
    for codec, target in TARGETS.items():
        if options.only in codec.name:
            print(row(codec, target, host.to(device), codec.encode(host, seed=1)), flush=True)


if __name__ == "__main__":
    main()
