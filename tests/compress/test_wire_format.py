"""The bytes of every payload, pinned: whoever changes a layout finds out here, and then raises ``wire_version``.

The input and its arithmetic are exact in float32, so that the bytes are the same on every machine.
"""

import hashlib

import pytest
import torch

from hpcopt.compress import (
    BHQ,
    PSQ,
    QSGD,
    AdaComp,
    AdaptiveRandom,
    BiasedRounding,
    ChunkedTopK,
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

PINNED: list[tuple[Codec, int, str]] = [
    (Dense(), 1, "52b8540dd50b1f04"),
    (Half(), 1, "3b93c1ee57007fde"),
    (Half(format="fp16"), 1, "84e58ea553fe002a"),
    (Sign(), 1, "85a95d6fe6771939"),
    (SignBits(), 1, "f6be9dd1a9bb347e"),
    (QSGD(bits=2), 1, "065e26302d750a7f"),
    (QSGD(bits=3), 1, "8da308cf1bdf3b67"),
    (QSGD(bits=4), 1, "409e5812a246051c"),
    (QSGD(bits=7), 1, "01f5333bc78f0cee"),
    (QSGD(bits=8), 1, "b50f3972513905cf"),
    (PSQ(), 1, "4cf88ba475b47ea6"),
    (PSQ(bits=5, columns=100), 1, "61560b3e4b53d33f"),
    (BHQ(), 1, "4a58f9bc654e0488"),
    (BHQ(bits=5, columns=100), 1, "62912c2c04eff877"),
    (TernGrad(), 1, "065e26302d750a7f"),
    (Natural(), 1, "e87887652f705366"),
    (BiasedRounding(), 1, "05708d5e39919617"),
    (ExponentialDithering(), 1, "0996a0688e7dd6da"),
    (TopK(), 1, "eba42e1205ac8878"),
    (TopK(fraction=0.1, values=QSGD(bits=8)), 1, "013998245e29d0ed"),
    (ChunkedTopK(bucket=512, k=20), 1, "eb3b1ee518ae5491"),
    (RandomK(), 2, "6d91bf2e760e728d"),
    (AdaptiveRandom(), 1, "eef0ee059033de95"),
    (AdaComp(bin=50), 1, "a3442de66be3b6c8"),
    (AdaComp(bin=500), 1, "32e519fb2c33285f"),
]


def payload(codec: Codec) -> bytes:
    """1300 values: multiples of 1/16 between -8 and 8, no two neighbours alike."""
    x = ((torch.arange(1300) * 97) % 257 - 128) / 16
    return codec.encode(x, seed=(5 << 32) + 12345, first=1024).numpy().tobytes()


@pytest.mark.parametrize(("codec", "version", "digest"), PINNED, ids=[repr(codec) for codec, _, _ in PINNED])
def test_bytes_are_those_of_the_version(codec, version, digest):
    assert codec.wire_version == version
    assert hashlib.sha256(payload(codec)).hexdigest()[:16] == digest, "the layout has changed: raise wire_version"
