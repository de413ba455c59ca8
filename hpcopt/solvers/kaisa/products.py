"""Float32 products through oneDNN.

On processors that are not Intel's, torch's own ``mm``, which is MKL's, runs at half the speed of oneDNN's kernel (Zen
5, one thread, 1024 rows: 114 against 255 GFLOP/s). Both compute in float32; which one is taken depends on shapes and
types alone, so that all ranks take the same.
"""

from functools import cache

import torch
from torch import Tensor

FEWEST = 1 << 18  # multiplications below which a call costs more than it saves

NARROW = torch.bfloat16

_has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _has_onednn else None


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """Give ``a b^T``, shape (n, m), of matrices (n, k) and (m, k)."""
    if _linear is None or a.dtype != torch.float32 or a.device.type != "cpu" or a.numel() * len(b) < FEWEST:
        return a @ b.T
    product: Tensor = _linear(a, b, None, "none", [], "")
    return product


@cache
def narrow_is_quick() -> bool:
    """Whether this processor has instructions for bfloat16 products; without, they are slower than float32's."""
    cpu = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()) and _has_onednn
