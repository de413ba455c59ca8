"""The digits that training reads are scikit-learn's, each exactly once."""

import numpy as np
from sklearn.datasets import load_digits

from hpcopt.prepare import digits, prepare
from hpcopt.store.shards import Shards


def test_both_splits_together_are_all_digits(tmp_path):
    folder = prepare("digits", tmp_path)
    splits = {split: Shards(folder, split) for split in ("train", "test")}
    assert {split: len(shards) for split, shards in splits.items()} == {"train": 1437, "test": 360}
    rows = [shards.rows(np.arange(len(shards))) for shards in splits.values()]
    found = np.concatenate([np.column_stack([r["images"].reshape(-1, 64), r["labels"]]) for r in rows])
    images, labels = load_digits(return_X_y=True)
    expected = np.column_stack([images, labels])
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


def test_statistics_are_those_of_the_training_split():
    data = digits.read(None)
    intensity = data.arrays["train"]["images"] / 16
    assert data.attributes["scale"] == 1 / 16
    np.testing.assert_allclose(data.attributes["mean"], [intensity.mean()])
    np.testing.assert_allclose(data.attributes["std"], [intensity.std()])


def test_every_class_is_in_both_splits():
    for arrays in digits.read(None).arrays.values():
        assert np.bincount(arrays["labels"], minlength=10).min() > 25
