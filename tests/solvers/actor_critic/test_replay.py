"""The replay's ring, its draws against theory, and its file."""

import h5py
import numpy as np
import pytest
import torch

from hpcopt.errors import JobError
from hpcopt.solvers.actor_critic.prioritised import PrioritisedReplayConfig
from hpcopt.solvers.actor_critic.replay import UniformReplayConfig
from hpcopt.solvers.actor_critic.sum_tree import SumTree


def numbered(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)


@pytest.mark.parametrize("pieces", [(4,), (10,), (3, 3, 3, 3), (7, 0, 9), (25,), (1,) * 23])
@pytest.mark.parametrize("kind", [UniformReplayConfig, PrioritisedReplayConfig])
def test_the_newest_are_kept_and_go_on(kind, pieces):
    replay, total = kind(capacity=10).build(3, 1), 0
    for count in pieces:
        replay.add(numbered(total, count))
        total += count
    kept = replay.state_dict()["rows"]
    assert kept[:, 0].tolist() == list(range(total))[-10:] and len(replay) == len(kept)
    again = kind(capacity=10).build(3, 1)
    again.load_state_dicts([replay.state_dict()])
    assert again.added == total
    drawn = [one.draw(64, torch.Generator().manual_seed(0)) for one in (replay, again)]
    assert drawn[0].age == pytest.approx(float((total - 1 - drawn[0].rows[:, 0]).double().mean()))
    assert set(drawn[0].rows[:, 0].tolist()) <= set(kept[:, 0].tolist())
    assert torch.equal(drawn[0].rows, drawn[1].rows)


def test_even_draws():
    replay = UniformReplayConfig(capacity=8).build(3, 1)
    replay.add(numbered(0, 13))
    drawn = replay.draw(80_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn.places, minlength=8)
    assert drawn.weights is None and torch.allclose(counts / 80_000, torch.full((8,), 1 / 8), atol=0.005)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_prioritised_draws_and_weights_are_those_of_theory(alpha):
    config = PrioritisedReplayConfig(capacity=16, alpha=alpha, beta=0.5)
    replay = config.build(3, 1)
    replay.add(numbered(0, 11))
    errors = torch.linspace(0.0, 3.0, 11)
    replay.learned(torch.arange(11), errors)
    expected = (errors.double() + 1e-6) ** alpha
    expected /= expected.sum()
    drawn = replay.draw(100_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.places, minlength=11) / 100_000
    assert torch.allclose(shares.double(), expected, atol=2e-4)  # strata leave less to chance than single draws
    weights = (11 * expected[drawn.places]) ** -0.5
    assert torch.allclose(drawn.weights.double(), weights / weights.max())
    replay.add(numbered(11, 1))  # as likely as the largest
    assert replay._tree[np.array([11])] == pytest.approx(max(1.0, (3 + 1e-6) ** alpha))
    again = config.build(3, 1)
    again.load_state_dicts([replay.state_dict()])
    drawn, same = (one.draw(9, torch.Generator().manual_seed(1)) for one in (replay, again))
    assert torch.equal(drawn.rows, same.rows) and torch.equal(drawn.weights, same.weights)


@pytest.mark.parametrize("places", [1, 2, 5, 8, 1000])
def test_a_tree_of_sums(places):
    draw, tree, plain = np.random.default_rng(places), SumTree(places), np.zeros(places)
    for _ in range(20):
        some, values = draw.integers(places, size=7), draw.exponential(size=7)
        tree[some] = values
        for place, value in zip(some, values, strict=True):
            plain[place] = value
    assert tree.total == pytest.approx(plain.sum()) and np.array_equal(tree[np.arange(places)], plain)
    masses = draw.uniform(0, 0.999999 * tree.total, 500)
    assert np.array_equal(tree.find(masses), np.searchsorted(plain.cumsum(), masses, "right"))
    assert np.array_equal(tree.find(np.array([0.0])), np.flatnonzero(plain)[:1])


def test_a_replay_in_a_file_is_as_one_in_memory(tmp_path):
    folder = tmp_path / "room"
    replays = [UniformReplayConfig(capacity=10, folder=where).build(3, 1) for where in (None, folder)]
    for replay in replays:
        replay.add(numbered(0, 17))
    drawn = [replay.draw(20, torch.Generator().manual_seed(0)).rows for replay in replays]
    assert torch.equal(*drawn)
    (file,) = folder.iterdir()
    replays[1]._array.flush()
    with h5py.File(file) as opened:
        assert np.array_equal(opened["rows"][...], replays[0]._array)
    del replays, replay
    assert not list(folder.iterdir())
    (tmp_path / "no").touch()
    with pytest.raises(JobError, match="cannot hold the replay"):
        UniformReplayConfig(folder=tmp_path / "no").build(3, 1)
    with pytest.raises(JobError, match=r"capacity = 1,000,000 transitions of 552,990,000 .* let them lie in a folder"):
        UniformReplayConfig().build(552_990_000, 1)
