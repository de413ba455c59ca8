"""Every codec keeps the contract that outsiders' codecs are held to; and what only some of them promise."""

import os

import pytest
import torch

from hpcopt.compress import PSQ, QSGD, SignBits, TernGrad
from hpcopt.errors import UnsupportedError
from hpcopt.testing.codec import check_codec, check_every_kind_of_value, check_payload, label
from hpcopt.testing.values import gaussian, hard_cases
from tests.compress.properties import CODECS, check_variance, exact_variance

SEEDS = int(os.environ.get("HPCOPT_CODEC_SEEDS", "1"))  # more by hand
every_codec = pytest.mark.parametrize("codec", CODECS, ids=label)


def named(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("codec", [c for c in CODECS if c.name in names], ids=label)


@every_codec
def test_the_contract(codec):
    check_codec(codec, draws=250)


@every_codec
def test_a_million_values(codec):
    check_payload(codec, 1_000_000)


@every_codec
@pytest.mark.parametrize("seed", range(1, 1 + SEEDS))
def test_finite_values_of_every_kind(codec, seed):
    check_every_kind_of_value(codec, (1, 64, 513), seed)


@pytest.mark.parametrize(
    "codec", [c for c in CODECS if (c.unbiased and c.name != "dense") or c.name == "adaptive_random"], ids=label
)
def test_variance_is_the_formula(codec):
    check_variance(codec, gaussian(700), count=400)


def test_the_variance_bound_of_rows_is_reached():
    """Two values opposite, and the others between them, amid two levels."""
    x = torch.zeros(512)
    x[:2] = torch.tensor([1.0, -1.0])
    for codec in (PSQ(bits=2), PSQ(bits=5)):
        assert exact_variance(codec, x.double().numpy()) / 2 == pytest.approx(codec.variance(512))


@pytest.mark.parametrize("codec", [QSGD(bits=4), QSGD(bits=8), TernGrad()], ids=label)
def test_the_variance_bound_is_reached(codec):
    worst = max(
        exact_variance(codec, x.double().numpy()) / float(x.double().square().sum()) for x in hard_cases(512) if x.any()
    )
    assert worst == pytest.approx(codec.variance(512), rel=1e-3)


@pytest.mark.parametrize("codec", [c for c in CODECS if c.unbiased and c.name != "dense"], ids=label)
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
def test_what_is_not_flat_contiguous_float32_is_refused(codec):
    for x in (torch.ones(20)[::2], torch.ones(4, 5), torch.ones(20, dtype=torch.float64)):
        with pytest.raises(UnsupportedError, match="contiguous"):
            codec.encode(x, seed=0)
    with pytest.raises(UnsupportedError, match="buffer"):
        codec.encode(torch.ones(20), seed=0, out=torch.empty(0, dtype=torch.uint8))


@named("qsgd", "terngrad", "natural", "exponential_dithering")
def test_parts_draw_the_numbers_of_the_whole(codec):
    x = gaussian(4096)
    whole = codec.decode(codec.encode(x, seed=9), 4096)
    parts = [codec.decode(codec.encode(part, seed=9, first=2048 * i), 2048) for i, part in enumerate(x.split(2048))]
    assert torch.equal(torch.cat(parts), whole)
