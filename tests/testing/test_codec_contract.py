"""The contract for outsiders' codecs finds each kind of mistake."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from hpcopt.compress import Codec, Dense, Half, TopK
from hpcopt.errors import UnsupportedError
from hpcopt.testing.codec import check_codec


class Sound(Dense):
    """Nothing wrong."""

    name: Literal["sound"] = "sound"


class Biased(Sound):
    """Rounds down, and calls itself unbiased."""

    def variance(self, n):
        return 0.5

    def _encode(self, x, seed, first, payload):
        return super()._encode(np.floor(x * 2) / 2, seed, first, payload)


class BeyondItsVariance(Sound):
    def variance(self, n):
        return 0.1

    def _encode(self, x, seed, first, payload):
        coin = np.random.default_rng(seed).random(x.size) < 0.5
        return super()._encode(np.where(coin, 2 * x, 0).astype(np.float32), seed, first, payload)


class OtherBytesEachTime(Sound):
    def _encode(self, x, seed, first, payload):
        return super()._encode(x + np.float32(1e-3) * torch.rand(x.size).numpy(), seed, first, payload)


class Uninitialised(Sound):
    """Sends eight bytes that it never wrote."""

    def max_bytes(self, n):
        return 4 * n + 8

    def _encode(self, x, seed, first, payload):
        super()._encode(x, seed, first, payload[: 4 * x.size])
        return payload.size


class OfUnknownLength(Sound):
    def _decode(self, payload, out, weight, add):
        super()._decode(payload[payload.size - 4 * out.size :], out, weight, add)


class ChangesItsInput(Sound):
    def _encode(self, x, seed, first, payload):
        x *= 2
        return super()._encode(x / 2, seed, first, payload)


class HidesNan(Sound):
    def _encode(self, x, seed, first, payload):
        return super()._encode(np.nan_to_num(x, posinf=0, neginf=0), seed, first, payload)


class OverflowsOnItsWay(Sound):
    def _encode(self, x, seed, first, payload):
        with np.errstate(over="ignore"):
            return super()._encode(x * np.float32(2**20) / np.float32(2**20), seed, first, payload)


class ForgetsFeedback(Half):
    def _encode_feedback(self, x, residual, seed, first, payload):
        return self._encode(x, seed, first, payload)


class IgnoresWeights(Sound):
    def _decode(self, payload, out, weight, add):
        super()._decode(payload, out, 1.0, add)


class TakesCutPayloads(Sound):
    def _decode(self, payload, out, weight, add):
        whole = np.zeros(4 * out.size, np.uint8)
        whole[: payload.size] = payload[: whole.size]
        super()._decode(whole, out, weight, add)


class NotLinear(TopK):
    """Sums of its payloads mean nothing, as the places differ."""

    linear = True

    def summable(self, payload):
        return payload[8 + 4 * int(payload[:4].view(torch.int32)) :].view(torch.float32)


class LinearInSecret(Sound):
    linear = False


class Enlarges(Sound):
    """Doubles, which its gain does not say."""

    def variance(self, n):
        return None

    def contraction(self, n):
        return None

    def _encode(self, x, seed, first, payload):
        return super()._encode(2 * x, seed, first, payload)


MISTAKES: list[tuple[Callable[[], Codec], str]] = [
    (Biased, "says unbiased"),
    (BeyondItsVariance, "squared error"),
    (OtherBytesEachTime, "other bytes"),
    (Uninitialised, "other bytes in a slot"),
    (OfUnknownLength, "where it ends"),
    (ChangesItsInput, "changed its input"),
    (HidesNan, "not refused"),
    (OverflowsOnItsWay, "decode to Inf or NaN"),
    (ForgetsFeedback, "feedback lost"),
    (IgnoresWeights, "weight"),
    (TakesCutPayloads, "is not refused"),
    (NotLinear, "says linear"),
    (LinearInSecret, "to be summed"),
    (Enlarges, "gain 2"),
]


def test_a_sound_codec_passes():
    check_codec(Sound())


@pytest.mark.parametrize(("make", "message"), MISTAKES, ids=[make.__name__ for make, _ in MISTAKES])
def test_the_mistake_is_found(make, message):
    with np.errstate(all="ignore"), pytest.raises((AssertionError, UnsupportedError), match=message):
        check_codec(make(), draws=200)
