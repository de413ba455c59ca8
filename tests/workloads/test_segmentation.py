"""Dice by counting, and a workload whose loss and scores do not depend on ranks."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.errors import DataError, JobError
from hpcopt.models.unet import UNetConfig
from hpcopt.prepare.fashion_segmentation import THRESHOLD, compose
from hpcopt.shapes.context import Context
from hpcopt.store.shards import write_shards
from hpcopt.workloads.segmentation import SegmentationConfig, dice


def test_dice_by_counting():
    draw = np.random.default_rng(0)
    found, masks = draw.integers(0, 2, (2, 20, 5, 5)).astype(np.float32)
    found[0], masks[0], masks[1] = 0, 0, 0
    for score, a, b in zip(dice(torch.from_numpy(found), torch.from_numpy(masks)), found, masks, strict=True):
        inside_a, inside_b = set(np.flatnonzero(a)), set(np.flatnonzero(b))
        total = len(inside_a) + len(inside_b)
        assert float(score) == pytest.approx(2 * len(inside_a & inside_b) / total if total else 1.0)


def test_a_garment_lies_on_cloth_where_its_mask_is():
    draw = np.random.default_rng(0)
    garments = draw.integers(0, 256, (40, 28, 28)).astype(np.uint8)
    images, masks = compose(garments, 30, draw)
    assert images.shape == masks.shape == (30, 48, 48)
    for image, mask in zip(images, masks, strict=True):
        ys, xs = np.nonzero(mask)
        found = [
            garment
            for garment in garments
            for y in range(max(0, ys.max() - 27), min(ys.min(), 20) + 1)
            for x in range(max(0, xs.max() - 27), min(xs.min(), 20) + 1)
            if np.array_equal(mask[y : y + 28, x : x + 28], garment > THRESHOLD)
            and np.array_equal(image[y : y + 28, x : x + 28][garment > THRESHOLD], garment[garment > THRESHOLD])
        ]
        assert len(found) == 1
        blocks = np.where(mask, -1, image.astype(int)).reshape(12, 4, 12, 4).swapaxes(1, 2).reshape(144, 16)
        assert all(len(set(block) - {-1}) <= 1 for block in blocks)


@pytest.fixture
def data(tmp_path):
    draw = np.random.default_rng(0)
    images, masks = compose(draw.integers(0, 256, (40, 28, 28)).astype(np.uint8), 36, draw)
    attributes = {"scale": 1 / 255, "mean": np.array([0.5]), "std": np.array([0.3])}
    for split, rows in (("train", slice(0, 24)), ("test", slice(24, 36))):
        arrays = {"images": images[rows, None], "masks": masks[rows]}
        write_shards(tmp_path, split, arrays, rows_per_shard=20, attributes=attributes)
    return tmp_path


def test_the_whole_is_the_sum_of_its_parts(data):
    w = SegmentationConfig(data=data, batch=12, model=UNetConfig(depth=2, width=4)).build(Context())
    whole = next(w.train_batches(0, 1, 0))
    parts = [next(w.train_batches(rank, 5, 0)) for rank in range(5)]
    with torch.no_grad():
        torch.testing.assert_close(sum(w.loss(w.model, p) * p.weight for p in parts), w.loss(w.model, whole))
        (test,) = w.test_batches(0, 1)
        scores = w.score(w.model, test)
    assert 0 < float(scores["test_dice"]) / w.test_samples < 1
    assert float(scores["test_loss"]) / w.test_samples == pytest.approx(float(w.loss(w.model, test)), rel=1e-5)


def test_a_perfect_model_scores_one(data):
    w = SegmentationConfig(data=data, batch=12, model=UNetConfig(depth=1, width=4)).build(Context())
    (test,) = w.test_batches(0, 1)

    class Perfect(nn.Module):
        def forward(self, x):
            return 40 * (test.tensors["masks"][:, None].float() - 0.5)

    scores = w.score(Perfect(), test)
    assert float(scores["test_dice"]) == w.test_samples
    assert float(scores["test_loss"]) < 1e-6


def test_what_does_not_fit_is_named(data, tmp_path):
    with pytest.raises(JobError, match="do not halve 5 times"):
        SegmentationConfig(data=data, batch=12, model=UNetConfig(depth=5)).build(Context())
    write_shards(
        tmp_path / "other", "train", {"images": np.zeros((2, 1, 8, 8), np.uint8)}, rows_per_shard=2, attributes={}
    )
    write_shards(
        tmp_path / "other", "test", {"images": np.zeros((2, 1, 8, 8), np.uint8)}, rows_per_shard=2, attributes={}
    )
    with pytest.raises(DataError, match="not images and masks"):
        SegmentationConfig(data=tmp_path / "other", batch=2).build(Context())
