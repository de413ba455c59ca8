"""The kernels' loops again, slow and plain, in numpy."""

import numpy as np


def random_bits(n: int, seed: int, first: int = 0) -> np.ndarray:
    """The 32 random bits of values ``first`` to ``first + n - 1``, uint32."""
    with np.errstate(over="ignore"):
        low, high = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
        h = (np.arange(first, first + n, dtype=np.uint64) & 0xFFFFFFFF).astype(np.uint32) * np.uint32(0x9E3779B9) + low
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D) + high
        return (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of ``bits`` bits as the bytes of a payload: blocks of 512, fields of 8, 4, 2, 1 bits, rows interleaved."""
    packed = []
    for start in range(0, codes.size, 512):
        block, shift = codes[start : start + 512], 0
        for width in (8, 4, 2, 1):
            if not bits & width:
                continue
            field = (block >> shift) & ((1 << width) - 1)
            rows, lanes = 8 // width, -(-block.size * width // 8)
            table = np.zeros(rows * lanes, np.int64)
            table[: block.size] = field
            packed.append((table.reshape(rows, lanes) << (width * np.arange(rows))[:, None]).sum(0).astype(np.uint8))
            shift += width
    return np.concatenate(packed) if packed else np.empty(0, np.uint8)


def qsgd_codes(x: np.ndarray, bits: int, bucket: int, seed: int) -> np.ndarray:
    """Level + s of each value, max norm."""
    levels = 2 ** (bits - 1) - 1
    fraction = 32 - bits
    codes = np.zeros(x.size, np.int64)
    dice = random_bits(x.size, seed).astype(np.int64) >> bits
    for start in range(0, x.size, bucket):
        part = x[start : start + bucket]
        scale = np.abs(part).max()
        if scale == 0:
            codes[start : start + bucket] = levels
            continue
        units = np.float32(levels * 2.0**fraction)
        factor = np.float32(units / scale)
        while np.float32(scale * factor) > units:
            factor = np.nextafter(factor, np.float32(0))
        fixed = np.trunc(part * factor).astype(np.int64)
        codes[start : start + bucket] = ((fixed + dice[start : start + bucket]) >> fraction) + levels
    return codes


def natural_bits(x: np.ndarray, seed: int) -> np.ndarray:
    """Values rounded up or down to a power of two, by comparing the dice with the mantissa."""
    size = np.abs(x)
    exponent = size.view(np.uint32) >> 23
    mantissa = size.view(np.uint32) & 0x7FFFFF
    up = mantissa + (random_bits(x.size, seed) >> np.uint32(9)) >= 1 << 23
    rounded = ((exponent + up) << np.uint32(23)).astype(np.uint32)
    return (rounded | (x.view(np.uint32) & np.uint32(0x80000000))).view(np.float32)


def adacomp(x: np.ndarray, residue: np.ndarray, size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What AdaComp sends, dense, and the new residue."""
    g = residue + x
    h = g + np.float32(scale - 1) * x
    bins = [slice(i, i + size) for i in range(0, x.size, size)]
    tops = [np.abs(g[b]).max() for b in bins]
    step = np.float32(np.mean(np.array(tops, np.float64)))
    sent = np.zeros_like(g)
    for b, top in zip(bins, tops, strict=True):
        chosen = (np.abs(h[b]) >= top) & (g[b] != 0)
        sent[b][chosen] = np.sign(g[b][chosen]) * step
    return sent, g - sent


def chunked_topk(x: np.ndarray, chunk: int, k: int) -> np.ndarray:
    """What ChunkedTopK sends, dense: every cut of the sorted magnitudes into two groups is tried."""
    sent = np.zeros_like(x)
    for start in range(0, x.size, chunk):
        part = x[start : start + chunk]
        places = largest(part, -(-part.size * k // chunk))
        sizes = np.abs(part[places].astype(np.float64))
        ordered = np.sort(sizes)
        cuts = [(float(((g - g.mean()) ** 2).sum()), 0) for g in [ordered]]
        cuts += [
            (sum(float(((g - g.mean()) ** 2).sum()) for g in (ordered[:j], ordered[j:])), j)
            for j in range(1, ordered.size)
        ]
        upper = sizes >= ordered[min(cuts)[1]]
        for group in (upper, ~upper):
            if group.any():
                sent[start + places[group]] = np.sign(part[places[group]]) * np.float32(sizes[group].mean())
    return sent


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest magnitudes, ascending, the first of equal ones."""
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])
