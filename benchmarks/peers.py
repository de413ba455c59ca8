"""What one would write in plain numpy or torch: the peers of ``benchmarks/codecs.py``. Each does the work of our
codec with its own layout.
"""

from collections.abc import Callable

import numpy as np
import torch

Make = Callable[[torch.Tensor], Callable[[], object]]
BUCKET = 512


def numpy_pack(x: torch.Tensor) -> Callable[[], object]:
    a = x.numpy()
    return lambda: np.packbits(a < 0)


def torch_pack(x: torch.Tensor) -> Callable[[], object]:
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return lambda: ((x < 0).view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def numpy_unpack(x: torch.Tensor) -> Callable[[], object]:
    packed = np.packbits(x.numpy() < 0)
    return lambda: 1 - 2 * np.unpackbits(packed).astype(np.float32)


def torch_unpack(x: torch.Tensor) -> Callable[[], object]:
    packed, places = torch.from_numpy(np.packbits(x.numpy() < 0)), torch.arange(7, -1, -1, dtype=torch.uint8)
    return lambda: 1 - 2 * (packed[:, None] >> places & 1).float().view(-1)


def numpy_feedback(x: torch.Tensor) -> Callable[[], object]:
    a, residual = x.numpy(), np.zeros(x.numel(), np.float32)

    def step() -> object:
        residual[:] += a
        blocks = residual.reshape(-1, BUCKET)
        scales = np.abs(blocks).mean(1, keepdims=True)
        packed = np.packbits(residual < 0)
        blocks -= np.where(blocks < 0, -scales, scales)
        return scales, packed

    return step


def torch_feedback(x: torch.Tensor) -> Callable[[], object]:
    residual, weights = torch.zeros_like(x), 2 ** torch.arange(8, dtype=torch.uint8)

    def step() -> object:
        blocks = residual.add_(x).view(-1, BUCKET)
        scales = blocks.abs().mean(1, keepdim=True)
        packed = ((residual < 0).view(-1, 8) * weights).sum(1, dtype=torch.uint8)
        blocks.sub_(torch.where(blocks < 0, -scales, scales))
        return scales, packed

    return step


def numpy_qsgd(x: torch.Tensor) -> Callable[[], object]:
    blocks, random = x.numpy().reshape(-1, BUCKET), np.random.default_rng(0)

    def encode() -> object:
        scales = np.abs(blocks).max(1, keepdims=True)
        codes = (
            (np.floor(blocks * (7 / scales) + random.random(blocks.shape, np.float32)) + 7).astype(np.uint8).reshape(-1)
        )
        return scales, codes[::2] | codes[1::2] << 4

    return encode


def torch_qsgd(x: torch.Tensor, levels: int = 7) -> Callable[[], object]:
    blocks = x.view(-1, BUCKET)

    def encode() -> object:
        scales = blocks.abs().amax(1, keepdim=True)
        codes = (blocks * (levels / scales) + torch.rand(blocks.shape)).floor().add(levels).to(torch.uint8).view(-1)
        return scales, codes[::2] | codes[1::2] << 4

    return encode


def numpy_qsgd_decode(x: torch.Tensor) -> Callable[[], object]:
    scales, codes = numpy_qsgd(x)()  # type: ignore[misc]
    table = np.stack([np.arange(256) & 15, np.arange(256) >> 4], 1).astype(np.float32) - 7
    return lambda: table[codes].reshape(-1, BUCKET) * (scales / 7)


def torch_qsgd_decode(x: torch.Tensor) -> Callable[[], object]:
    scales, codes = torch_qsgd(x)()  # type: ignore[misc]
    return lambda: (torch.stack([codes & 15, codes >> 4], 1).view(-1, BUCKET).float() - 7) * (scales / 7)


def numpy_terngrad(x: torch.Tensor) -> Callable[[], object]:
    blocks, random = x.numpy().reshape(-1, BUCKET), np.random.default_rng(0)

    def encode() -> object:
        sizes = np.abs(blocks)
        scales = sizes.max(1, keepdims=True)
        drawn = random.random(blocks.shape, np.float32) * scales < sizes
        codes = (np.sign(blocks) * drawn + 1).astype(np.uint8).reshape(-1)
        return scales, codes[::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6

    return encode


def torch_terngrad(x: torch.Tensor) -> Callable[[], object]:
    blocks = x.view(-1, BUCKET)

    def encode() -> object:
        scales = blocks.abs().amax(1, keepdim=True)
        codes = (blocks.sign() * torch.bernoulli(blocks.abs() / scales) + 1).to(torch.uint8).view(-1)
        return scales, codes[::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6

    return encode


def numpy_natural(x: torch.Tensor) -> Callable[[], object]:
    a, random = x.numpy(), np.random.default_rng(0)

    def encode() -> object:
        bits = a.view(np.uint32)
        rounded = (bits & 0x7FFFFFFF) + random.integers(0, 1 << 23, bits.size, np.uint32)
        return (rounded >> 23).astype(np.uint8), np.packbits(a < 0)

    return encode


def torch_natural(x: torch.Tensor) -> Callable[[], object]:
    weights = 2 ** torch.arange(8, dtype=torch.uint8)

    def encode() -> object:
        bits = x.view(torch.int32)
        rounded = (bits & 0x7FFFFFFF) + torch.randint(1 << 23, bits.shape, dtype=torch.int32)
        return (rounded >> 23).to(torch.uint8), ((x < 0).view(-1, 8) * weights).sum(1, dtype=torch.uint8)

    return encode


def torch_topk(x: torch.Tensor) -> Callable[[], object]:
    k = x.numel() // 100

    def encode() -> object:
        places = x.abs().topk(k).indices
        return places, x[places]

    return encode


def numpy_topk(x: torch.Tensor) -> Callable[[], object]:
    a, k = x.numpy(), x.numel() // 100

    def encode() -> object:
        places = np.argpartition(np.abs(a), a.size - k)[a.size - k :]
        return places, a[places]

    return encode


def numpy_adacomp(x: torch.Tensor) -> Callable[[], object]:
    a = x.numpy().reshape(-1, BUCKET)  # a bin of 500 would not divide the array
    residue = np.zeros_like(a)

    def encode() -> object:
        np.add(residue, a, out=residue)
        tops = np.abs(residue).max(1, keepdims=True)
        chosen = np.flatnonzero(np.abs(residue + a) >= tops)
        signs = np.sign(residue.reshape(-1)[chosen])
        residue.reshape(-1)[chosen] -= tops.mean() * signs
        return chosen, signs

    return encode


def torch_adacomp(x: torch.Tensor) -> Callable[[], object]:
    residue = torch.zeros_like(x)

    def encode() -> object:
        g = residue.add_(x).view(-1, BUCKET)
        tops = g.abs().amax(1, keepdim=True)
        chosen = ((g + x.view(-1, BUCKET)).abs() >= tops).view(-1).nonzero().view(-1)
        signs = residue[chosen].sign()
        residue[chosen] -= tops.mean() * signs
        return chosen, signs

    return encode


def numpy_half(x: torch.Tensor) -> Callable[[], object]:
    a = x.numpy()
    return lambda: a.astype(np.float16)


def numpy_bfloat(x: torch.Tensor) -> Callable[[], object]:
    bits = x.numpy().view(np.uint32)
    return lambda: (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def torch_bfloat(x: torch.Tensor) -> Callable[[], object]:
    return lambda: x.to(torch.bfloat16)


PEERS: list[tuple[str, str, Make]] = [
    ("sign bits: pack", "numpy", numpy_pack),
    ("sign bits: pack", "torch", torch_pack),
    ("sign bits: unpack", "numpy", numpy_unpack),
    ("sign bits: unpack", "torch", torch_unpack),
    ("sign: encode with feedback", "numpy", numpy_feedback),
    ("sign: encode with feedback", "torch", torch_feedback),
    ("qsgd 4 bits: encode", "numpy", numpy_qsgd),
    ("qsgd 4 bits: encode", "torch", torch_qsgd),
    ("qsgd 4 bits: decode", "numpy", numpy_qsgd_decode),
    ("qsgd 4 bits: decode", "torch", torch_qsgd_decode),
    ("terngrad: encode", "numpy", numpy_terngrad),
    ("terngrad: encode", "torch", torch_terngrad),
    ("natural: encode", "numpy", numpy_natural),
    ("natural: encode", "torch", torch_natural),
    ("bf16: encode", "numpy", numpy_bfloat),
    ("bf16: encode", "torch", torch_bfloat),
    ("fp16: encode", "numpy", numpy_half),
    ("top 1 % exact: encode", "numpy", numpy_topk),
    ("top 1 % exact: encode", "torch", torch_topk),
    ("adacomp 500: with feedback", "numpy", numpy_adacomp),
    ("adacomp 500: with feedback", "torch", torch_adacomp),
]
