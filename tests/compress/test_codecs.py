"""Codec by codec, against a plain numpy version of the same paper."""

import subprocess
import sys
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hpcopt.compress import (
    QSGD,
    AdaComp,
    Atomo,
    BiasedRounding,
    ChunkedTopK,
    Codec,
    Dense,
    ExponentialDithering,
    Half,
    Natural,
    PerTensor,
    RandomK,
    Rule,
    Sign,
    SignBits,
    TernGrad,
    TopK,
)
from hpcopt.compress.atomo import comb, probabilities
from hpcopt.families import CODECS
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.testing.values import gaussian
from tests.compress import oracle

SIZES = [1, 7, 63, 64, 65, 511, 512, 513, 1300]
of_every_size = pytest.mark.parametrize("n", SIZES)


def test_importing_the_codecs_does_not_import_numba():
    command = "import sys, hpcopt.compress; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


@of_every_size
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_qsgd_bytes_are_the_oracles(n, bits):
    x = gaussian(n)
    seed = 3 + (7 << 32)
    payload = QSGD(bits=bits).encode(x, seed=seed).numpy()
    buckets = -(-n // 512)
    codes = oracle.qsgd_codes(x.numpy(), bits, 512, seed)
    assert (
        payload[: 4 * buckets].view(np.float32) == [np.abs(b).max() for b in np.split(x.numpy(), range(512, n, 512))]
    ).all()
    assert (payload[4 * buckets :] == oracle.pack(codes, bits)).all()
    levels = 2 ** (bits - 1) - 1
    scales = np.repeat(payload[: 4 * buckets].view(np.float32), 512)[:n].astype(np.float64)
    decoded = QSGD(bits=bits).decode(torch.from_numpy(payload), n).numpy()
    assert decoded == pytest.approx((codes - levels) * scales / levels, rel=1e-6)


def test_qsgd_in_the_l2_norm_has_the_papers_variance():
    """Four bits, Gaussian buckets of 512: relative variance 1.58, against .037 for the largest magnitude."""
    x = torch.randn(512 * 40, generator=torch.Generator().manual_seed(0))
    for norm, expected in (("l2", 1.58), ("max", 0.037)):
        codec = QSGD(norm=norm)
        error = [
            (codec.decode(codec.encode(x, seed=s), x.numel()) - x).square().sum() / x.square().sum() for s in range(50)
        ]
        assert torch.stack(error).mean().item() == pytest.approx(expected, rel=0.05)


@of_every_size
def test_natural_rounding_is_the_oracles(n):
    x = gaussian(n)
    assert (Natural().decode(Natural().encode(x, seed=11), n).numpy() == oracle.natural_bits(x.numpy(), 11)).all()


def test_natural_rounding_of_denormals_is_unbiased():
    x = torch.full((20000,), 3e-39)
    mean = Natural().decode(Natural().encode(x, seed=1), x.numel()).double().mean().item()
    chance = 3e-39 / 2.0**-126
    assert mean == pytest.approx(3e-39, abs=5 * 2.0**-126 * (chance * (1 - chance) / 20000) ** 0.5)


def test_biased_rounding_takes_the_nearest_power():
    x = torch.tensor([1.0, 1.49, 1.5, 1.51, -2.9, -3.0, 0.0, 0.7499, 0.75, 5e30])
    expected = [1.0, 1.0, 2.0, 2.0, -2.0, -4.0, 0.0, 0.5, 1.0, 2.0**102]
    assert BiasedRounding().decode(BiasedRounding().encode(x, seed=0), 10).tolist() == expected


def test_exponential_dithering_decodes_to_its_levels():
    x = gaussian(512)
    decoded = ExponentialDithering(bits=4).decode(ExponentialDithering(bits=4).encode(x, seed=1), 512)
    levels = torch.tensor([0.0, *(2.0**-k for k in range(7))]) * x.abs().max()
    assert torch.isin(decoded.abs(), levels).all()
    assert (decoded * x >= 0).all()


@of_every_size
def test_signs_are_packbits(n):
    x = gaussian(n)
    x[::5] = 0.0
    x[1::5] = -0.0
    bits = np.packbits(x.numpy() < 0, bitorder="little")
    for codec, head in ((SignBits(), 0), (Sign(), 8 * -(-4 * -(-n // 512) // 8))):
        words = codec.encode(x, seed=0).numpy()[head:]
        assert (words[: bits.size] == bits).all() and not words[bits.size :].any()
    assert (SignBits().decode(SignBits().encode(x, seed=0), n).numpy() == np.where(x.numpy() < 0, -1, 1)).all()


@of_every_size
def test_sign_scales_are_mean_magnitudes_and_fusion_changes_nothing(n):
    x, owed = gaussian(n), gaussian(n, seed=1)
    codec = Sign()
    total = x + owed
    expected = np.concatenate(
        [
            np.where(b < 0, -1, 1) * np.abs(b).mean()
            for b in np.split(total.numpy().astype(np.float64), range(512, n, 512))
        ]
    )
    residual = owed.clone()
    payload = codec.encode_feedback(x, residual, seed=0)
    assert torch.equal(payload, codec.encode(total, seed=0))
    assert codec.decode(payload, n).numpy() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(residual, total - codec.decode(payload, n))


def test_signs_of_huge_values_have_a_finite_scale():
    x = torch.full((512,), 1e38)
    assert Sign().decode(Sign().encode(x, seed=0), 512).tolist() == pytest.approx([1e38] * 512, rel=1e-6)


def test_half_is_torchs_rounding():
    x = gaussian(1000)
    for codec, dtype in ((Half(), torch.bfloat16), (Half(format="fp16"), torch.float16)):
        assert torch.equal(codec.decode(codec.encode(x, seed=0), 1000), x.to(dtype).float())


def test_clipping_cuts_at_root_mean_squares():
    x = torch.full((512,), 0.1)
    x[3] = -20.0
    limit = 2.5 * x.square().mean().sqrt()
    decoded = TernGrad(clip=2.5).decode(TernGrad(clip=2.5).encode(x, seed=0), 512)
    assert decoded[3].item() == pytest.approx(-limit.item(), rel=1e-5)
    assert set(decoded.abs().unique().tolist()) <= {0.0, -decoded[3].item()}


@of_every_size
@pytest.mark.parametrize("fraction", [0.01, 0.3, 1.0])
def test_topk_is_the_oracles(n, fraction):
    for x in (gaussian(n), torch.ones(n), torch.tensor([1.0, -1.0, 0.0] * n)[:n]):
        codec = TopK(fraction=fraction)
        places = oracle.largest(x.numpy(), codec.k(n))
        expected = torch.zeros(n)
        expected[places] = x[places]
        assert torch.equal(codec.decode(codec.encode(x, seed=0), n), expected)


@pytest.mark.parametrize("kind", ["gaussian", "equal", "mostly zero", "periodic"])
def test_topk_by_sampling_a_million(kind):
    n = 1_000_000
    x = gaussian(n)
    if kind == "equal":
        x = torch.ones(n)
    elif kind == "mostly zero":
        x[torch.arange(n) % 1000 > 2] = 0
    elif kind == "periodic":  # what a strided sample is blind to
        x[(torch.arange(n) % 256) >= 16] *= 100
    exact, sampled = TopK(), TopK(threshold="sampled")
    expected = torch.zeros(n)
    places = oracle.largest(x.numpy(), 10_000)
    expected[places] = x[places]
    assert torch.equal(exact.decode(exact.encode(x, seed=0), n), expected)
    decoded = sampled.decode(sampled.encode(x, seed=0), n)
    count = int((decoded != 0).sum())
    assert min(5_000, int((x != 0).sum())) <= count <= 12_500
    assert kind == "equal" or x[decoded == 0].abs().max() <= decoded[decoded != 0].abs().min()


def test_topk_with_a_second_codec():
    x = gaussian(5000)
    dense, coded = TopK(fraction=0.2), TopK(fraction=0.2, values=QSGD(bits=8))
    chosen = dense.decode(dense.encode(x, seed=0), 5000)
    recoded = coded.decode(coded.encode(x, seed=0), 5000)
    assert not recoded[chosen == 0].any()
    values = coded.values.decode(coded.values.encode(chosen[chosen != 0].contiguous(), seed=0), 1000)
    assert torch.equal(recoded[chosen != 0], values)
    assert coded.encode(x, seed=0).numel() < 0.65 * dense.encode(x, seed=0).numel()


@pytest.mark.parametrize("fraction", [0.1, 0.15])
def test_random_k_draws_every_place_as_often(fraction):
    x = torch.arange(1.0, 1001.0)
    codec = RandomK(fraction=fraction, scaled=False)
    hits, pairs = torch.zeros(1000), 0
    for seed in range(400):
        decoded = codec.decode(codec.encode(x, seed=seed), 1000)
        sent = decoded != 0
        assert sent.sum() == codec.k(1000) and torch.equal(decoded[sent], x[sent])
        hits += sent
        pairs += int((sent & sent.roll(10)).sum())
    assert (hits - 400 * fraction).abs().max() < 5 * (400 * fraction * (1 - fraction)) ** 0.5
    assert pairs / hits.sum() == pytest.approx(fraction, rel=0.05)  # places 10 apart know nothing of each other


@of_every_size
@pytest.mark.parametrize("size", [1, 50, 128, 129, 500])
def test_adacomp_is_the_oracles(n, size):
    codec = AdaComp(bin=size)
    residual, kept = torch.zeros(n), np.zeros(n, np.float32)
    for step in range(5):
        x = gaussian(n, seed=step)
        sent, kept = oracle.adacomp(x.numpy(), kept, size, 2.0)
        payload = codec.encode_feedback(x, residual, seed=0)
        assert (codec.decode(payload, n).numpy() == sent).all()
        assert (residual.numpy() == kept).all()


def test_adacomp_conserves_to_rounding_and_adapts():
    x, residual = gaussian(5000), gaussian(5000, seed=1)
    before = residual.clone()
    codec = AdaComp(bin=50)
    sent = codec.decode(codec.encode_feedback(x, residual, seed=0), 5000)
    assert torch.allclose(
        residual + sent, before + x, rtol=0, atol=2e-7 * float((before + x).abs().max() + sent.abs().max())
    )
    counts = (sent != 0).view(-1, 50).sum(1)
    assert counts.min() < counts.max()
    assert codec.for_tensor("w", (8, 3, 3, 3)) == codec
    assert AdaComp().for_tensor("w", (8, 3, 3, 3)).bin == 50
    assert AdaComp().for_tensor("w", (8, 3)).bin == 500


@of_every_size
@pytest.mark.parametrize(
    "codec", [ChunkedTopK(bucket=64, k=5), ChunkedTopK(bucket=512, k=100), ChunkedTopK()], ids=repr
)
def test_chunked_topk_is_the_oracles(n, codec):
    for x in (gaussian(n), gaussian(n).sign(), torch.zeros(n), gaussian(n).pow(9)):
        payload = codec.encode(x, seed=0)
        sent = oracle.chunked_topk(x.numpy(), codec.bucket, codec.k)
        torch.testing.assert_close(codec.decode(payload, n), torch.from_numpy(sent), rtol=1e-6, atol=0)
        assert payload.numel() == codec.max_bytes(n)


def test_the_bytes_of_chunked_topk_are_those_of_its_formula():
    """64 of 4,096: two magnitudes, 64 times 2 + 6 bits, and a bitmap of 64 + 63."""
    assert ChunkedTopK().max_bytes(10 * 4096) == 10 * (8 + (64 * 8 + 127 + 7) // 8)


@pytest.mark.parametrize("budget", [0.5, 1.0, 3.7, 8.0, 20.0, 64.0, 100.0])
def test_atomo_probabilities_are_feasible_and_optimal(budget):
    random = np.random.default_rng(0)
    sizes = random.standard_normal(64) * np.exp(random.standard_normal(64))
    sizes[5] = 0
    p = probabilities(sizes, budget)
    live = sizes != 0
    assert (p >= 0).all() and (p <= 1).all() and p[5] == 0
    assert p.sum() == pytest.approx(min(budget, live.sum()))
    best = (sizes[live] ** 2 / p[live]).sum()
    for _ in range(200):  # random feasible ones, near and far
        other = p[live] * np.exp(random.standard_normal(live.sum()) * random.choice([0.01, 0.1, 1.0]))
        for _ in range(100):
            other = np.minimum(1, other * min(budget, live.sum()) / other.sum())
        assert (sizes[live] ** 2 / other).sum() >= best * (1 - 1e-9)


def test_atomo_reproduces_one_level_qsgd_and_terngrad():
    size = np.abs(gaussian(300).double().numpy())
    l2, top = np.sqrt((size**2).sum()), size.max()
    assert probabilities(size, size.sum() / l2) == pytest.approx(size / l2, rel=1e-9)
    p = probabilities(size, size.sum() / top)
    assert p == pytest.approx(size / top, rel=1e-9)
    assert (size**2 / p).sum() == pytest.approx(top * size.sum(), rel=1e-9)  # TernGrad's second moment


def test_atomo_draws_with_its_probabilities_and_sends_its_budget():
    p = probabilities(np.abs(np.random.default_rng(1).standard_normal(40)), 7.3)
    starts = (np.arange(5000) + 0.5) / 5000
    drawn = np.zeros(40)
    for start in starts:
        places = comb(p, start)
        assert places.size in (7, 8)
        drawn[places] += 1
    assert drawn / 5000 == pytest.approx(p, abs=1e-3)


def test_atomo_sees_a_parameter_as_its_matrix():
    low = torch.outer(gaussian(24), gaussian(27, seed=1)) + torch.outer(gaussian(24, seed=2), gaussian(27, seed=3))
    codec = Atomo(basis="svd", share=0.16).for_tensor("conv", (24, 3, 3, 3))
    assert codec.columns == 27 and codec.budget(648) > 2
    assert torch.allclose(codec.decode(codec.encode(low.view(-1), seed=0), 648), low.view(-1), atol=1e-4)


def test_seeds_depend_on_every_part():
    keys = [
        (1, 2, 3, "a"),
        (2, 2, 3, "a"),
        (1, 3, 3, "a"),
        (1, 2, EVERY_RANK, "a"),
        (1, 2, 3, "b"),
        (12, 3, 4, "a"),
        (1, 23, 4, "a"),
    ]
    seeds = {derive(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(1, 2, 3, "a") == derive(1, 2, 3, "a")


def test_a_rule_chooses_by_name_size_and_dimensions():
    choice = PerTensor(
        otherwise=QSGD(),
        rules=(Rule(pattern="head.*", codec=Half()), Rule(max_dims=1), Rule(max_numel=100, codec=Dense())),
    )
    assert choice.for_tensor("body.weight", (64, 64)) == QSGD()
    assert choice.for_tensor("body.bias", (64000,)) == Dense()
    assert choice.for_tensor("head.weight", (64, 64)) == Half()
    assert choice.for_tensor("body.small", (10, 10)) == Dense()


def test_a_job_names_a_codec():
    codec = TypeAdapter(Annotated[Codec, CODECS]).validate_python(
        {"name": "topk", "fraction": 0.1, "values": {"name": "qsgd", "bits": 8}}
    )
    assert codec == TopK(fraction=0.1, values=QSGD(bits=8))
    for wrong in (
        {"name": "qsgd", "bits": 9},
        {"name": "qsgd", "bucket": 100},
        {"name": "qsgd", "bit": 4},
        {"name": "qsdg"},
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(Annotated[Codec, CODECS]).validate_python(wrong)
