"""How float32 products are made, and how many samples at once.

torch's own ``mm``, which is MKL's, does not know AVX-512 on processors that are not Intel's, and runs at half the speed
of oneDNN's kernel (Zen 5, one thread, 1024 rows: 114 against 255 GFLOP/s). On Intel's, and without AVX-512, it is the
quicker one, with few rows by a third and more. Both compute in float32; which one is taken depends on shapes and types,
and on the processor.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16  # values: products in main memory have the same bits wherever a matrix begins at such a multiple
FEWEST = 1 << 18  # multiplications below which a call costs more than it saves

NARROW = torch.bfloat16
_WORDS = {True: "tf32", False: "ieee"}
ON_DEVICE = 1 << 26  # values: a GPU has no such cache, and wants few large kernels, in a bounded memory


def _is_intels() -> bool:
    with suppress(OSError):
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False


_has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
ONEDNN_IS_QUICKER = _has_onednn and torch.backends.cpu.get_cpu_capability() == "AVX512" and not _is_intels()
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if ONEDNN_IS_QUICKER else None


def times_transposed(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Give ``a b^T``, shape (n, m), of matrices (n, k) and (m, k); in ``out``, which need not be contiguous."""
    if _linear is None or a.dtype != torch.float32 or a.device.type != "cpu" or a.numel() * len(b) < FEWEST:
        return torch.mm(a, b.T, out=out)
    product: Tensor = _linear(a, b, None, "none", [], "")
    return product if out is None else out.copy_(product)


def transposed(x: Tensor) -> Tensor:
    """Give the transposed matrix, laid out as products with it are quick: the kernel that copies what is not contiguous
    gets a copy, so that it makes one only.
    """
    return x.T if _linear is None and x.is_cpu else x.T.contiguous()


def aligned(numel: int) -> int:
    """So many values, or more, that what comes after them begins at a multiple of ``ALIGNED``."""
    return -(-numel // ALIGNED) * ALIGNED


@cache
def narrow_is_quick(device: torch.device) -> bool:
    """Whether there are instructions for bfloat16 products; without, they are slower than float32's."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpu = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()) and _has_onednn


def worked_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which type matrices of this one are multiplied: float32 for bfloat16 without instructions for it, for there
    products take five to forty times as long.
    """
    return torch.float32 if dtype == NARROW and not narrow_is_quick(device) else dtype


def at_once(x: Tensor, of_cache: int, each: int) -> int:
    """Samples to be worked on together.

    Args:
        x: where they are.
        of_cache: values that stay in a CPU's cache.
        each: values that a sample takes.
    """
    return max(1, (of_cache if x.is_cpu else ON_DEVICE) // max(1, each))


@contextmanager
def rounding(tf32: bool) -> Iterator[None]:
    """Within it GPUs' float32 convolutions and matrix products round to TF32 or do not, however torch is set. TF32,
    which torch takes for convolutions by default, loses 1e-3 of a value.
    """
    convolutions: Any = getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)
    places = [convolutions, torch.backends.cuda.matmul]
    name, word = ("allow_tf32", tf32) if convolutions is torch.backends.cudnn else ("fp32_precision", _WORDS[tf32])
    before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, word)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)
