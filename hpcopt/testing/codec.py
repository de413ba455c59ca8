"""What every codec promises, as functions that raise AssertionError; ``check_codec`` runs them all.

    from hpcopt.testing.codec import check_codec

    def test_mine():
        check_codec(Mine())

What a codec says of itself (unbiased, linear, its variance and contraction) is taken at its word and checked; what it
does not say is not asked of it.
"""

import math
import random
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from hpcopt.compress.codec import Codec
from hpcopt.compress.finite import MOST
from hpcopt.errors import NonFiniteError, PayloadError, UnsupportedError
from hpcopt.testing.values import every_kind, gaussian, hard_cases

LENGTHS = (0, 1, 7, 63, 511, 512, 513, 1300)
EPSILON = 2.0**-23  # of float32
SMALLEST = 2.0**-149  # subnormal


def check_codec(codec: Codec, draws: int = 1000) -> None:
    """Run every check below.

    Args:
        draws: seeds over which means are taken, and a fifth of them for bounds; some seconds of a slow codec.

    Raises:
        AssertionError: naming the codec, the promise and an input.
    """
    for n in LENGTHS:
        check_payload(codec, n)
    check_draws(codec)
    for n in (7, 700):
        if codec.unbiased:
            check_mean(codec, gaussian(n), draws)
    for x in hard_cases(700):
        check_bound(codec, x, max(2, draws // 5))
    check_telescoping(codec)
    check_every_kind_of_value(codec)
    check_not_finite(codec)
    check_damage(codec)
    check_sums(codec)


def label(codec: Codec) -> str:
    """The codec and those of its settings that are not the defaults."""
    settings = codec.model_dump(exclude_defaults=True, exclude={"name"})
    return "-".join([codec.name, *(f"{key}={value}" for key, value in settings.items())])


def draws_of(codec: Codec, x: Tensor, count: int) -> Tensor:
    """Decoded payloads of x for seeds 0, 1, ..., shape (count, n), float64."""
    return torch.stack([codec.decode(codec.encode(x, seed=seed), x.numel()).double() for seed in range(count)])


def check_payload(codec: Codec, n: int) -> None:
    """Bytes counted are bytes sent, in a slot of any length; decoding writes, adds and weighs; the input stays."""
    who, x = f"{label(codec)}, n = {n}", gaussian(n)
    kept = x.clone()
    payload = codec.encode(x, seed=5)
    assert torch.equal(x, kept), f"{who}: encoding changed its input"
    assert payload.dtype == torch.uint8 and payload.dim() == 1, f"{who}: a payload is flat and uint8"
    most = codec.max_bytes(n)
    assert payload.numel() <= most, f"{who}: {payload.numel()} bytes, more than max_bytes({n}) = {most}"
    assert n or not payload.numel(), f"{who}: the payload of no values is empty"
    decoded = codec.decode(payload, n)
    assert decoded.shape == (n,) and decoded.isfinite().all(), f"{who}: decoded values are not {n} finite ones"

    slot = torch.full((most + 24,), 0xA5, dtype=torch.uint8)
    assert torch.equal(codec.encode(x, seed=5, out=slot), payload), f"{who}: other bytes in a slot that is given"
    assert (slot[most:] == 0xA5).all(), f"{who}: wrote behind max_bytes"
    assert torch.equal(codec.decode(slot, n), decoded), f"{who}: a payload must say where it ends"

    out = torch.full((n,), 7.0)
    assert codec.decode(payload, n, out=out) is out and torch.equal(out, decoded), f"{who}: decode into out"
    codec.decode_add(payload, out, weight=-1.0)
    assert not out.any(), f"{who}: decode_add with weight -1 takes away what decode gave"
    codec.decode_add(payload, out, weight=0.5)
    assert torch.allclose(out, 0.5 * decoded, rtol=1e-6, atol=0), f"{who}: decode_add with weight 1/2"


def check_draws(codec: Codec) -> None:
    """The same (seed, x, first) gives the same bytes, whatever was encoded or drawn before."""
    x = gaussian(1024)
    payload = codec.encode(x, seed=2**40 + 3, first=512)
    torch.manual_seed(1)
    random.seed(1)
    np.random.default_rng(1)
    np.random.seed(1)
    codec.encode(gaussian(99, seed=4), seed=8)
    codec.encode_feedback(gaussian(512, seed=4), torch.ones(512), seed=8)
    for same in (codec, codec.model_copy()):
        assert torch.equal(same.encode(x, seed=2**40 + 3, first=512), payload), f"{label(codec)}: other bytes at a seed"


def check_mean(codec: Codec, x: Tensor, count: int = 3000) -> None:
    """The mean over seeds is x: along x, its signs, ones and random directions, and in every coordinate of a short
    x.
    """
    n = x.numel()
    generator = torch.Generator().manual_seed(1)
    directions = [
        x.double(),
        x.sign().double(),
        torch.ones(n).double(),
        *torch.randn(12, n, generator=generator).double(),
    ]
    directions += list(torch.eye(n).double()) if n < 10 else []
    projected = (draws_of(codec, x, count) - x.double()) @ torch.stack(directions).T
    error = projected.std(0) / math.sqrt(count)
    rounding = 2e-7 * x.double().abs() @ torch.stack(directions).abs().T
    assert (projected.mean(0).abs() <= 4.5 * error + rounding).all(), f"{label(codec)}: says unbiased, and is biased"


def check_bound(codec: Codec, x: Tensor, count: int = 200) -> None:
    """Contraction and variance bounds hold on x, within 4 standard errors (deterministic codecs: to rounding), and no
    decoded magnitude is above the codec's gain.
    """
    decoded = draws_of(codec, x, count)
    squares = (decoded - x.double()).square().sum(1)
    noise = 4 * float(squares.std()) / math.sqrt(count)
    whole, largest = float(x.double().square().sum()), float(x.abs().max())
    delta, omega = codec.contraction(x.numel()), codec.variance(x.numel())
    for bound in ([] if delta is None else [1 - delta]) + ([] if omega is None else [omega]):
        assert squares.mean() <= bound * whole * (1 + 1e-5) + noise, (
            f"{label(codec)}: squared error {float(squares.mean())} of {whole}, more than {bound} of it"
        )
    gain = float(decoded.abs().max()) / largest if largest >= 1 else 0.0  # signs alone have a size of their own
    assert gain <= codec.gain(x.numel()) * (1 + 1e-5), f"{label(codec)}: gain {gain} > {codec.gain(x.numel())}"


def check_telescoping(codec: Codec, steps: int = 30, n: int = 1300) -> None:
    """With error feedback, what was sent and what is owed add up to what came in."""
    _feed_back(codec, [gaussian(n, seed=step) for step in range(steps)])


def check_every_kind_of_value(codec: Codec, lengths: tuple[int, ...] = (1, 700), seed: int = 0) -> None:
    """Every finite float32 whose decoded value must be one, too, is carried, and error feedback loses nothing of it;
    larger ones may be refused.
    """
    for n in lengths:
        gain = codec.gain(n)
        for x in every_kind(n, MOST / gain, seed):
            decoded = codec.decode(codec.encode(x, seed=3), n)
            assert decoded.isfinite().all(), f"{label(codec)}: {x[:4].tolist()}... decode to Inf or NaN"
        for x in every_kind(n, MOST, seed):
            with suppress(NonFiniteError):
                decoded = codec.decode(codec.encode(x, seed=3), n)
                assert decoded.isfinite().all(), f"{label(codec)}: neither refused nor carried: {x[:4].tolist()}..."
        for x in every_kind(n, MOST / (1 + gain), seed):
            _feed_back(codec, [x])
        for x in every_kind(n, MOST / (4 + 4 * gain) ** 3, seed):
            _feed_back(codec, [x, -x.flip(0), x])


def _feed_back(codec: Codec, inputs: list[Tensor]) -> None:
    n = inputs[0].numel()
    residual, came, sent, rounding = (torch.zeros(n), *(torch.zeros(n).double() for _ in range(3)))
    for step, x in enumerate(inputs):
        rounding += x.double().abs() + residual.double().abs()
        decoded = codec.decode(codec.encode_feedback(x, residual, seed=step), n)
        came += x
        sent += decoded
        rounding += decoded.double().abs()
    assert residual.isfinite().all(), f"{label(codec)}: finite values left Inf or NaN in the residual"
    lost = (sent + residual - came).abs() - EPSILON * rounding - 4 * len(inputs) * SMALLEST
    assert (lost <= 0).all(), f"{label(codec)}: error feedback lost {float(lost.max())} of {inputs[0][:4].tolist()}..."


def check_not_finite(codec: Codec) -> None:
    """Inf and NaN are refused by name, or come out at their place."""
    for bad in (math.nan, math.inf, -math.inf):
        for place in (0, 63, 511, 600, 699):
            x = gaussian(700)
            x[place] = bad
            try:
                payload = codec.encode(x, seed=0)
            except NonFiniteError as refusal:
                assert codec.name in str(refusal), f"{label(codec)}: does not name itself when it refuses {bad}"
                try:
                    codec.encode_feedback(x, torch.zeros(700), seed=0)
                except NonFiniteError:
                    continue
                raise AssertionError(f"{label(codec)}: with feedback takes {bad}, which it else refuses") from None
            value = codec.decode(payload, 700)[place]
            assert not value.isfinite(), f"{label(codec)}: {bad} at {place} becomes {float(value)} and is not refused"


def check_damage(codec: Codec) -> None:
    """A payload cut short is refused with PayloadError; of a damaged one that may be, or it decodes to other values;
    nothing is written out of bounds.
    """
    payload = codec.encode(gaussian(700), seed=0)
    for length in (payload.numel() - 1, 0):
        try:
            codec.decode(payload[:length], 700)
        except PayloadError:
            continue
        raise AssertionError(f"{label(codec)}: a payload cut to {length} of {payload.numel()} bytes is not refused")
    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        hit = torch.rand(payload.shape, generator=noise) < 0.2
        damaged = torch.where(hit, torch.randint(256, payload.shape, generator=noise).byte(), payload)
        guarded = torch.full((900,), 3.0)
        with suppress(PayloadError):
            codec.decode(damaged, 700, out=guarded[100:800])
        outside = torch.cat([guarded[:100], guarded[800:]])
        assert (outside == 3).all(), f"{label(codec)}: a damaged payload writes out of bounds"


def check_sums(codec: Codec) -> None:
    """A linear codec's payloads may be summed; another's say that they may not."""
    payloads = [codec.encode(gaussian(700, seed=rank), seed=4) for rank in range(3)]
    if not codec.linear:
        try:
            codec.summable(payloads[0])
        except UnsupportedError:
            return
        raise AssertionError(f"{label(codec)}: is not linear, and gives a part of its payload to be summed")
    total = torch.stack([codec.decode(payload, 700) for payload in payloads]).sum(0)
    for other in payloads[1:]:
        codec.summable(payloads[0]).add_(codec.summable(other))
    tolerance = 3 * torch.finfo(codec.summable(payloads[0]).dtype).eps * float(total.abs().max())
    difference = float((codec.decode(payloads[0], 700) - total).abs().max())
    assert difference <= tolerance, f"{label(codec)}: says linear, and the sum of payloads is off by {difference}"
