"""Images with what counts drawn over them, as PNG files inside a page."""

import base64
import struct
import zlib

import numpy as np

FOR, AGAINST = np.array([214, 39, 40]), np.array([31, 119, 180])  # red and blue, apart for who sees no green
GROWN = 96  # pixels, that small images are enlarged to at least
WHERE = (("upper left", "top", "upper right"), ("left", "middle", "right"), ("lower left", "bottom", "lower right"))


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of an image (height, width, 3), uint8."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def data_uri(pixels: np.ndarray) -> str:
    """A PNG as an address inside a page; a small image is enlarged by whole pixels."""
    times = max(1, -(-GROWN // min(pixels.shape[:2])))
    grown = pixels.repeat(times, 0).repeat(times, 1)
    return f"data:image/png;base64,{base64.b64encode(png(grown)).decode()}"


def plain(image: np.ndarray) -> np.ndarray:
    """An image (channels, height, width) of any range as pixels (height, width, 3), uint8: its least value is black."""
    low, high = float(image.min()), float(image.max())
    grey = (image - low) / (high - low or 1.0)
    seen = grey[:3] if len(grey) >= 3 else np.repeat(grey[:1], 3, 0)
    return np.asarray(np.rint(255 * seen.transpose(1, 2, 0)), np.uint8)


def overlay(image: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """An image in pale grey, red where values count for the class and blue where against it; pixels as ``plain`` gives.

    Args:
        image: (channels, height, width).
        counts: what the values count, (channels or 1, height, width).
    """
    pale = 0.35 * plain(image).mean(2, keepdims=True) + 150
    share = strength(counts.sum(0))[:, :, None]
    colour = np.where(share > 0, FOR, AGAINST)
    return np.asarray(np.rint((1 - np.abs(share)) * pale + np.abs(share) * colour), np.uint8)


def strength(counts: np.ndarray) -> np.ndarray:
    """What values count, between -1 and 1: by the 99th percentile of their sizes, so that one value hides no others."""
    size = float(np.percentile(np.abs(counts), 99)) or float(np.abs(counts).max()) or 1.0
    return np.clip(counts / size, -1, 1)


def in_words(counts: np.ndarray) -> str:
    """Where what counts for the class lies, for who does not see it: counts (channels or 1, height, width)."""
    there = counts.sum(0).clip(min=0)
    if not there.any():
        return "nothing counts for the class"
    height, width = there.shape
    down = float((there.sum(1) * (np.arange(height) + 0.5)).sum() / there.sum() / height)
    across = float((there.sum(0) * (np.arange(width) + 0.5)).sum() / there.sum() / width)
    order = np.sort(there.ravel())[::-1]
    half = int(np.searchsorted(order.cumsum(), order.sum() / 2)) + 1
    place = WHERE[min(2, int(3 * down))][min(2, int(3 * across))]
    return f"counts for the class around the {place}, half of it on {half / there.size:.0%} of the pixels"
