"""What all image workloads share: shards of images with a target each, normalised as the shards say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hpcopt.errors import DataError, JobError
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.workload import Workload
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder, share

TEST_BATCH = 256


class ImageWorkload(Workload):
    """The data half of a workload; its shards hold ``images``, (n, channels, height, width), uint8, and a target.

    Attributes:
        batch, train_samples, test_samples: as of Workload.
        shape: channels, height, width.
        attributes: of the shards.
    """

    def __init__(self, folder: Path, target: str, batch: int, seed: int) -> None:
        """Open the shards; target is the name of the array that holds one for each image.

        Raises:
            DataError: the shards are missing or lack an array.
            JobError: there are fewer images than a batch needs.
        """
        self._train, self._test = Shards(folder, "train"), Shards(folder, "test")
        for shards in (self._train, self._test):
            if not {"images", target} <= shards.fields.keys():
                raise DataError(f"{folder} holds {sorted(shards.fields)}, not images and {target}")
        self._target, self.batch = target, batch
        self.train_samples, self.test_samples = len(self._train), len(self._test)
        if batch > self.train_samples:
            raise JobError(f"[workload] batch = {batch}, but {folder} has {self.train_samples} training samples")
        self._order = TrainOrder(self.train_samples, batch, seed)
        self.shape, self.attributes = self._train.fields["images"].shape, self._train.attributes
        std = torch.as_tensor(self.attributes["std"]).float().view(-1, 1, 1)
        self._gain = float(self.attributes["scale"]) / std  # pixels to zero mean and unit variance in each channel
        self._offset = torch.as_tensor(self.attributes["mean"]).float().view(-1, 1, 1) / std

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        self._train.verify(rank, size)
        self._test.verify(rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        step = start
        while True:
            yield self._read(self._train, self._order.indices(step, rank, size), self.batch)
            step += 1

    def test_batches(self, rank: int, size: int) -> Iterator[TensorBatch]:
        mine = share(np.arange(self.test_samples), rank, size)
        for start in range(0, len(mine), TEST_BATCH):
            yield self._read(self._test, mine[start : start + TEST_BATCH], self.test_samples)

    def _read(self, shards: Shards, indices: np.ndarray, global_size: int) -> TensorBatch:
        rows = shards.rows(indices)
        images = torch.from_numpy(rows["images"]).float().mul_(self._gain).sub_(self._offset)
        targets = torch.from_numpy(rows[self._target].astype(np.int64))
        return TensorBatch({"images": images, self._target: targets}, torch.from_numpy(indices), global_size)
