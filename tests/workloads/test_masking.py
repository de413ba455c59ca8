"""Masks follow the paper's proportions and depend on nothing but (seed, epoch, row)."""

import numpy as np

from hpcopt.workloads.masking import mask_tokens, most_predicted

WORDS, MASK = 1000, 4


def sequences(n: int, s: int = 128) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    last = generator.integers(4, s, n)
    last[: n // 2] = s - 1
    ids = generator.integers(5, WORDS, (n, s)).astype(np.int32)
    ids[np.arange(s) > last[:, None]] = 0
    special = np.stack([np.zeros(n), last // 2, last], axis=1).astype(np.int32)
    np.put_along_axis(ids, special, np.array([2, 3, 3], np.int32), 1)
    return ids, special


def mask(ids, special, rows, epoch=0, seed=0):
    return mask_tokens(ids, special, rows, seed=seed, epoch=epoch, words=WORDS, mask_id=MASK)


def test_published_places():
    assert (most_predicted(128), most_predicted(512)) == (20, 80)


def test_counts_and_places():
    ids, special = sequences(3000)
    masked = mask(ids, special, np.arange(3000))
    counts = (masked.positions > 0).sum(1)
    expected = [min(20, max(1, round(0.15 * (last - 2)))) for last in special[:, 2]]
    np.testing.assert_array_equal(counts, expected)
    for row in range(200):
        places = masked.positions[row, : counts[row]]
        assert (np.diff(places) > 0).all()
        assert not set(places) & set(special[row])
        assert places.max() < special[row, 2]
        np.testing.assert_array_equal(masked.ids[row, : counts[row]], ids[row, places])
        untouched = np.delete(np.arange(128), places)
        np.testing.assert_array_equal(masked.input_ids[row, untouched], ids[row, untouched])


def test_the_original_can_be_put_back():
    ids, special = sequences(50)
    masked = mask(ids, special, np.arange(50))
    restored = masked.input_ids.copy()
    for row in range(50):
        there = masked.positions[row] > 0
        restored[row, masked.positions[row, there]] = masked.ids[row, there]
    np.testing.assert_array_equal(restored, ids)


def test_eight_one_one():
    ids, special = sequences(4000)
    masked = mask(ids, special, np.arange(4000))
    there = masked.positions > 0
    now = np.take_along_axis(masked.input_ids, masked.positions.astype(np.int64), 1)[there]
    before = masked.ids[there]
    shares = [np.mean(now == MASK), np.mean((now != MASK) & (now != before)), np.mean(now == before)]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.005)


def test_every_place_is_as_likely():
    ids, special = sequences(8000)
    masked = mask(ids[:4000], special[:4000], np.arange(4000))  # full ones
    often = np.bincount(masked.positions[masked.positions > 0], minlength=128)
    middle = special[0, 1]
    others = np.delete(often, [0, middle, 127])
    assert often[middle] == often[127] == 0
    mean = 4000 * 19 / 125
    assert abs(others - mean).max() < 5 * mean**0.5


def test_a_mask_is_a_function_of_seed_epoch_and_row():
    ids, special = sequences(100)
    rows = np.arange(100)
    whole = mask(ids, special, rows)
    some = np.array([70, 3, 11])
    for of_all, alone in zip(whole, mask(ids[some], special[some], rows[some]), strict=True):
        np.testing.assert_array_equal(of_all[some], alone)
    for other in (mask(ids, special, rows, epoch=1), mask(ids, special, rows, seed=1), mask(ids, special, rows + 1)):
        assert (other.positions != whole.positions).any(1).mean() > 0.9
