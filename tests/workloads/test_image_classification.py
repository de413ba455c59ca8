"""Labels that are hidden: as many as asked, the same on any ranks, and without a loss."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hpcopt.errors import DataError
from hpcopt.models.mlp import MlpConfig
from hpcopt.shapes.context import Context
from hpcopt.store.shards import write_shards
from hpcopt.workloads.image_classification import UNLABELLED, ImageClassificationConfig, cross_entropy

SAMPLES, CLASSES = 40, 3


@pytest.fixture
def data(tmp_path):
    draw = np.random.default_rng(0)
    attributes = {"scale": 1 / 255, "mean": np.array([0.5]), "std": np.array([0.3]), "classes": ["a", "b", "c"]}
    for split in ("train", "test"):
        images = draw.integers(0, 256, (SAMPLES, 1, 4, 4)).astype(np.uint8)
        arrays = {"images": images, "labels": draw.integers(0, CLASSES, SAMPLES)}
        write_shards(tmp_path, split, arrays, rows_per_shard=20, attributes=attributes)
    return tmp_path


def seen(data, labelled: float, size: int, seed: int = 0) -> dict[int, int]:
    """Labels by sample, over one epoch of all ranks."""
    config = ImageClassificationConfig(data=data, batch=8, labelled=labelled, model=MlpConfig(hidden=(4,)))
    labels: dict[int, int] = {}
    for rank in range(size):
        batches = itertools.islice(config.build(Context(run_seed=seed)).train_batches(rank, size, 0), SAMPLES // 8)
        for batch in batches:
            labels |= dict(zip(batch.indices.tolist(), batch.tensors["labels"].tolist(), strict=True))
    return labels


def test_a_fraction_of_the_labels_is_seen(data):
    full, few = seen(data, 1.0, 1), seen(data, 0.25, 1)
    assert UNLABELLED not in full.values() and len(full) == len(few) == SAMPLES
    known = {index: label for index, label in few.items() if label != UNLABELLED}
    assert len(known) == SAMPLES // 4
    assert known.items() <= full.items()
    assert seen(data, 0.25, 3) == few
    assert seen(data, 0.25, 1, seed=1) != few


def test_test_labels_are_not_hidden(data):
    w = ImageClassificationConfig(data=data, batch=8, labelled=0.1, model=MlpConfig(hidden=(4,))).build(Context())
    assert all(int(batch.tensors["labels"].min()) >= 0 for batch in w.test_batches(0, 1))


def test_a_hidden_label_has_no_loss_and_changes_no_other():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, CLASSES, requires_grad=True), torch.tensor([0, 2, 1, 1, 0, 2])
    full = cross_entropy(logits, labels)
    torch.testing.assert_close(full, F.cross_entropy(logits, labels))
    (slope,) = torch.autograd.grad(full, logits)
    labels[2:4] = UNLABELLED
    (hidden,) = torch.autograd.grad(cross_entropy(logits, labels), logits)
    assert torch.equal(hidden[2:4], torch.zeros(2, CLASSES))
    assert torch.equal(hidden[[0, 1, 4, 5]], slope[[0, 1, 4, 5]])
    assert float(cross_entropy(logits.detach(), torch.full((6,), UNLABELLED))) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(SAMPLES, 3)}, "`labels` has 3 to 3, not 0 to 2"),
        ({"labels": np.full(SAMPLES, -1)}, "`labels` has -1 to -1, not 0 to 2"),
        ({"labels": np.zeros((SAMPLES, 1), int)}, "a row of labels is int64 of shape \\(1,\\), not integers in 0 dim"),
        ({"labels": np.zeros(SAMPLES)}, "a row of labels is float64"),
        ({"images": np.zeros((SAMPLES, 4, 4), np.uint8)}, "a row of images is uint8 of shape"),
        ({"mean": np.zeros(3)}, "attribute mean should hold 1 finite numbers"),
        ({"std": np.zeros(1)}, "attribute std.* above 0"),
        ({"scale": np.nan}, "attribute scale should hold 1 finite"),
        ({"classes": None}, "has no list of classes"),
    ],
)
def test_arrays_and_attributes_that_do_not_fit(tmp_path, change, message):
    arrays = {"images": np.zeros((SAMPLES, 1, 4, 4), np.uint8), "labels": np.zeros(SAMPLES, int)}
    attributes = {"scale": 1 / 255, "mean": np.array([0.5]), "std": np.array([0.3]), "classes": ["a", "b", "c"]}
    for split in ("train", "test"):
        changed = {name: change.get(name, array) for name, array in arrays.items()}
        others = {name: change.get(name, value) for name, value in attributes.items()}
        write_shards(tmp_path, split, changed, rows_per_shard=20, attributes=others)
    with pytest.raises(DataError, match=message):
        ImageClassificationConfig(data=tmp_path, batch=8, model=MlpConfig(hidden=(4,))).build(Context()).verify(0, 1)
