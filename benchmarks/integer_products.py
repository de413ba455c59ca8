"""Products of 8-bit integers beside float32 ones on one core: torch's ``_int_mm``, and its quantized linear layer by
each engine that it has. Only products are timed: operands are integers already.

    python benchmarks/integer_products.py
"""

import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

SHAPES = [(256, 256, 256), (1024, 512, 512), (784, 144, 16), (4096, 768, 768)]  # rows, inner, columns
SHARE = 0.5  # seconds for a product at least, or one turn


def seconds(run: Callable[[], object]) -> float:
    """The quickest of some turns."""
    run()
    best, end_s = float("inf"), time.perf_counter() + SHARE
    while best == float("inf") or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start_s)
    return best


def quantized_linear(x: torch.Tensor, weight: torch.Tensor, engine: str) -> Callable[[], object]:
    """``x weight^T`` of uint8 by int8, with the result as float32."""
    torch.backends.quantized.engine = engine
    integers = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(integers, None)
    low, high = float(x.min()), float(x.max())
    step = (high - low) / 127  # of 7 bits: sums of two products stay in 16
    inputs = torch.quantize_per_tensor(x, step, round(-low / step), torch.quint8)
    return lambda: torch.ops.quantized.linear(inputs, packed, 1.0, 0)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    engines = [e for e in ("x86", "onednn", "fbgemm") if e in torch.backends.quantized.supported_engines]
    names = ["_int_mm", *(f"linear, {e}" for e in engines)]
    print("| product | float32, GFLOP/s | " + " | ".join(f"{name}, times float32's speed" for name in names) + " |")
    print("|---|" + "---|" * (1 + len(names)))
    for rows, inner, columns in SHAPES:
        x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
        exact_s = seconds(lambda x=x, weight=weight: x @ weight.T)  # type: ignore[misc]
        a, b = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in (x.shape, weight.T.shape))
        runs = [lambda a=a, b=b: torch._int_mm(a, b), *(quantized_linear(x, weight, e) for e in engines)]
        found = []
        for name, run in zip(names, runs, strict=True):
            if name.startswith("linear"):
                torch.backends.quantized.engine = name.removeprefix("linear, ")
            found.append(f"{exact_s / seconds(run):.2f}")
        print(f"| {rows} x {inner} x {columns} | {2e-9 * rows * inner * columns / exact_s:.0f} | {' | '.join(found)} |")


if __name__ == "__main__":
    main()
