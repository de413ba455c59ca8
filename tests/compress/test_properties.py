"""Every codec keeps what its class promises, on every size, and refuses what it cannot carry."""

from contextlib import suppress

import pytest
import torch

from hpcopt.compress import QSGD, Codec, Dense, Half, SignBits, TernGrad
from hpcopt.errors import NonFiniteError, PayloadError, UnsupportedError
from tests.compress.properties import (
    CODECS,
    check_bound,
    check_mean,
    check_telescoping,
    check_variance,
    exact_variance,
    gaussian,
    hard_cases,
    label,
)

SIZES = [0, 1, 7, 511, 512, 513, 1_000_000]
CARRY = (Dense, Half)

every_codec = pytest.mark.parametrize("codec", CODECS, ids=label)
unbiased = pytest.mark.parametrize("codec", [c for c in CODECS if c.unbiased], ids=label)
with_formula = [c for c in CODECS if (c.unbiased and not isinstance(c, Dense)) or c.name == "adaptive_random"]


@unbiased
@pytest.mark.parametrize("n", [7, 700])
def test_the_mean_over_seeds_is_the_input(codec, n):
    check_mean(codec, gaussian(n))


@pytest.mark.parametrize("codec", with_formula, ids=label)
def test_variance_is_the_formula(codec):
    check_variance(codec, gaussian(700))


@every_codec
def test_contraction_and_variance_bounds(codec):
    for x in hard_cases(700):
        check_bound(codec, x)


@pytest.mark.parametrize("codec", [QSGD(bits=4), QSGD(bits=8), TernGrad()], ids=label)
def test_the_variance_bound_is_reached(codec):
    worst = max(
        exact_variance(codec, x.double().numpy()) / float(x.double().square().sum()) for x in hard_cases(512) if x.any()
    )
    assert worst == pytest.approx(codec.variance(512), rel=1e-3)


@every_codec
def test_error_feedback_loses_nothing(codec):
    if not isinstance(codec, SignBits):  # its unit steps feed back without bound
        check_telescoping(codec)


@every_codec
@pytest.mark.parametrize("n", SIZES)
def test_sizes_bytes_and_round_trip(codec: Codec, n):
    x = gaussian(n)
    payload = codec.encode(x, seed=5)
    assert payload.dtype == torch.uint8 and payload.numel() <= codec.max_bytes(n)
    assert torch.equal(payload, codec.encode(x, seed=5))
    decoded = codec.decode(payload, n)
    assert decoded.shape == (n,) and decoded.isfinite().all()

    slot = torch.full((codec.max_bytes(n) + 24,), 0xA5, dtype=torch.uint8)
    assert torch.equal(codec.encode(x, seed=5, out=slot), payload)
    assert (slot[codec.max_bytes(n) :] == 0xA5).all()
    assert torch.equal(codec.decode(slot, n), decoded)
    travelled = torch.frombuffer(bytearray(payload.numpy().tobytes() + b"\0" * 8), dtype=torch.uint8)
    assert torch.equal(codec.decode(travelled, n), decoded)

    out = torch.full((n,), 7.0)
    assert codec.decode(payload, n, out=out) is out and torch.equal(out, decoded)
    codec.decode_add(payload, out, weight=-1.0)
    assert not out.any()
    codec.decode_add(payload, out, weight=0.5)
    assert torch.allclose(out, 0.5 * decoded, rtol=1e-6, atol=0)


@every_codec
def test_the_encoder_leaves_its_input_alone(codec):
    x = gaussian(700)
    kept = x.clone()
    codec.encode(x, seed=1)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("codec", [c for c in CODECS if c.unbiased and c.name not in ("dense",)], ids=label)
def test_other_seeds_other_bytes(codec):
    x = gaussian(513)
    assert not torch.equal(codec.encode(x, seed=1), codec.encode(x, seed=2))
    assert not torch.equal(codec.encode(x, seed=1), codec.encode(x, seed=1 + 2**40))


@every_codec
@pytest.mark.parametrize("n", [1, 7, 513])
def test_zeros_stay_zero(codec, n):
    if not isinstance(codec, SignBits):
        assert not codec.decode(codec.encode(torch.zeros(n), seed=1), n).any()
        assert not codec.decode(codec.encode(-torch.zeros(n), seed=1), n).any()


@every_codec
def test_tiny_and_huge_values(codec):
    for scale in (1e-44, 1e-40, 1e-38, 1e-30, 1e30, 1e37):
        x = torch.tensor([1.0, -0.5, 0.25, 0.0, 1.0, -1.0] * 100) * scale
        if codec.name == "half" or isinstance(codec, SignBits):
            continue  # range of the format; units
        try:
            decoded = codec.decode(codec.encode(x, seed=3), 600)
        except NonFiniteError:
            assert scale == 1e37  # what is scaled up may leave the range of float32; then it is refused
            continue
        assert decoded.isfinite().all()
        assert (decoded.abs() <= 1000 * scale).all()


@every_codec
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 63, 511, 600, 699])
def test_inf_and_nan_are_refused_or_carried(codec, bad, place):
    x = gaussian(700)
    x[place] = bad
    if isinstance(codec, CARRY):
        assert torch.equal(codec.decode(codec.encode(x, seed=0), 700)[place].isnan(), torch.tensor(bad != bad))
        assert not codec.decode(codec.encode(x, seed=0), 700)[place].isfinite()
    else:
        with pytest.raises(NonFiniteError, match=codec.name):
            codec.encode(x, seed=0)
        with pytest.raises(NonFiniteError, match=codec.name):
            codec.encode_feedback(x, torch.zeros(700), seed=0)


@every_codec
def test_what_is_not_flat_contiguous_float32_is_refused(codec):
    for x in (torch.ones(20)[::2], torch.ones(4, 5), torch.ones(20, dtype=torch.float64)):
        with pytest.raises(UnsupportedError, match="contiguous"):
            codec.encode(x, seed=0)
    with pytest.raises(UnsupportedError, match="buffer"):
        codec.encode(torch.ones(20), seed=0, out=torch.empty(0, dtype=torch.uint8))


@every_codec
def test_a_payload_cut_short_is_refused(codec):
    x = gaussian(700)
    payload = codec.encode(x, seed=0)
    with pytest.raises(PayloadError):
        codec.decode(payload[: payload.numel() - 1], 700)
    with pytest.raises(PayloadError):
        codec.decode(payload[:0], 700)


@every_codec
def test_a_damaged_payload_never_writes_out_of_bounds(codec):
    payload = codec.encode(gaussian(700), seed=0)
    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        damaged = torch.where(
            torch.rand(payload.shape, generator=noise) < 0.2,
            torch.randint(256, payload.shape, generator=noise).byte(),
            payload,
        )
        guarded = torch.full((900,), 3.0)
        with suppress(PayloadError):
            codec.decode(damaged, 700, out=guarded[100:800])
        assert (guarded[:100] == 3).all() and (guarded[800:] == 3).all()


@pytest.mark.parametrize(
    "codec", [c for c in CODECS if c.name in ("qsgd", "terngrad", "natural", "exponential_dithering")], ids=label
)
def test_parts_draw_the_numbers_of_the_whole(codec):
    x = gaussian(4096)
    whole = codec.decode(codec.encode(x, seed=9), 4096)
    parts = [codec.decode(codec.encode(part, seed=9, first=2048 * i), 2048) for i, part in enumerate(x.split(2048))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("codec", [c for c in CODECS if c.linear], ids=label)
def test_linear_payloads_may_be_summed(codec):
    ranks = [gaussian(700, seed=rank) for rank in range(3)]
    payloads = [codec.encode(x, seed=4) for x in ranks]
    total = sum(codec.decode(payload, 700) for payload in payloads)
    for other in payloads[1:]:
        codec.summable(payloads[0]).add_(codec.summable(other))
    tolerance = 2 * 2**-7 if codec.name == "half" else 1e-5
    assert torch.allclose(
        codec.decode(payloads[0], 700), total, rtol=tolerance, atol=tolerance * float(total.abs().max())
    )


@pytest.mark.parametrize("codec", [c for c in CODECS if not c.linear], ids=label)
def test_other_payloads_may_not(codec):
    with pytest.raises(UnsupportedError, match="summed"):
        codec.summable(codec.encode(torch.ones(8), seed=0))
