"""Votes are counted exactly, on every pattern that so many voters can give."""

import numpy as np
import pytest
import torch

from hpcopt import kernels
from hpcopt.compress import SignBits


def all_patterns(voters: int) -> np.ndarray:
    """Votes of P voters in 2^P elections (at least one word), one of each pattern: uint64, (P, words)."""
    elections = np.arange(max(64, 2**voters))
    bits = (elections[None, :] >> np.arange(voters)[:, None]) & 1
    return np.packbits(bits.astype(bool), axis=1, bitorder="little").view(np.uint64)


def bits_of(words: np.ndarray) -> np.ndarray:
    return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").astype(np.int64)


@pytest.mark.parametrize("voters", range(1, 18))
def test_majority_on_every_pattern(voters):
    votes = all_patterns(voters)
    out = np.full(votes.shape[1], 0xA5, np.uint64)
    kernels.ballots.majority(votes, out)
    assert (bits_of(out) == (2 * bits_of(votes).sum(0) > voters)).all()


@pytest.mark.parametrize("voters", [1, 2, 5, 16, 17, 40, 129])
@pytest.mark.parametrize("words", [0, 1, 7, 8, 9, 200])
def test_majority_of_any_number_of_words(voters, words):
    votes = np.random.default_rng(voters).integers(0, 2**64, (voters, words), dtype=np.uint64)
    out = np.zeros(words, np.uint64)
    kernels.ballots.majority(votes, out)
    assert (bits_of(out) == (2 * bits_of(votes).sum(0) > voters)).all()


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [3, 1, 1, 1], [0, 0, 0, 0], [5, 4, 3, 2], [7, 0, 1, 6]])
def test_weighted_majority(weights):
    votes = all_patterns(4)
    out = np.zeros(votes.shape[1], np.uint64)
    kernels.ballots.weighted_majority(votes, weights, out)
    assert (bits_of(out) == (2 * (bits_of(votes) * np.array(weights)[:, None]).sum(0) > sum(weights))).all()


@pytest.mark.parametrize(("voters", "words"), [(1, 3), (4, 0), (4, 1), (5, 77), (17, 8)])
def test_agreements_are_what_signs_multiply_to(voters, words):
    votes = np.random.default_rng(words).integers(0, 2**64, (voters, words), dtype=np.uint64)
    counts = np.full((voters, voters), 7)
    kernels.ballots.agreements(votes, counts)
    signs = 1 - 2 * bits_of(votes)
    assert (counts == 7 + signs @ signs.T).all()


@pytest.mark.parametrize("groups", [[4, 4, 4, 4], [3, 5, 1], [2, 16], [1]])
def test_counts_of_groups_add_up_to_the_flat_vote(groups):
    voters = sum(groups)
    votes = np.random.default_rng(0).integers(0, 2**64, (voters, 70), dtype=np.uint64)
    total = np.zeros((voters.bit_length(), 70), np.uint64)
    for group in np.split(votes, np.cumsum(groups)[:-1]):
        planes = np.empty((len(group).bit_length(), 70), np.uint64)
        kernels.ballots.count(group, np.ones(len(group), np.int64), planes)
        kernels.ballots.add_counts(total, planes)
    counted = sum(bits_of(plane) << b for b, plane in enumerate(total))
    assert (counted == bits_of(votes).sum(0)).all()
    nested, flat = np.zeros(70, np.uint64), np.zeros(70, np.uint64)
    kernels.ballots.exceeds(total, voters // 2, nested)
    kernels.ballots.majority(votes, flat)
    assert (nested == flat).all()


def test_ties_and_zeros_are_plus():
    x = torch.tensor([[0.0, -0.0, -1.0, -1.0, 2.0], [-0.0, 1.0, 3.0, -2.0, -1e-45]])
    votes = torch.stack([SignBits().encode(row, seed=0) for row in x]).numpy().view(np.uint64)
    out = np.zeros(1, np.uint64)
    kernels.ballots.majority(votes, out)
    assert SignBits().decode(torch.from_numpy(out.view(np.uint8)), 5).tolist() == [1, 1, 1, -1, 1]


def test_nan_is_refused_by_the_codec_and_plus_in_the_kernel():
    x = np.array([np.nan, -np.nan, -1.0], np.float32)
    words = np.zeros(1, np.uint64)
    worst = kernels.bits.pack(x, words)
    assert words[0] == 0b100 and worst == 0x7F800000


@pytest.mark.parametrize("n", [1, 63, 64, 65, 513])
def test_the_step_of_sign_sgd_is_fused(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    parameters = torch.randn(n, generator=torch.Generator().manual_seed(1))
    expected = parameters - np.float32(0.01) * torch.where(x < 0, -1.0, 1.0)
    words = SignBits().encode(x, seed=0).numpy().view(np.uint64)
    kernels.bits.unpack(words, np.float32(-0.01), True, parameters.numpy())
    assert torch.equal(parameters, expected)
