"""What all image workloads share: shards of images with a target each, normalised as the shards say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcopt.errors import DataError, JobError
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.workload import Workload
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder, share

TEST_BATCH = 256
CPU = torch.device("cpu")


class ImageWorkload(Workload):
    """The data half of a workload; its shards hold ``images``, (n, channels, height, width), uint8, and a target.

    Attributes:
        batch, train_samples, test_samples: as of Workload.
        shape: channels, height, width.
        attributes: of the shards.
        most_target: the largest value that a target may have.
    """

    ahead = True
    most_target: int

    def __init__(self, folder: Path, target: str, target_dims: int, batch: int, seed: int) -> None:
        """Open the shards.

        Args:
            folder: of the shards.
            target: name of the array that holds integers for each image.
            target_dims: how many dimensions an image's have: 0 for a class, 2 for a mask.
            batch: samples in a step, over all ranks.
            seed: of their order.

        Raises:
            DataError: the shards are missing, lack an array or a scale, or have one of another type or shape.
            JobError: there are fewer images than a batch needs.
        """
        self._train, self._test = Shards(folder, "train"), Shards(folder, "test")
        for shards in (self._train, self._test):
            if not {"images", target} <= shards.fields.keys():
                raise DataError(f"{folder} holds {sorted(shards.fields)}, not images and {target}")
            _check(shards, target, target_dims)
        if self._train.fields["images"].shape != self._test.fields["images"].shape:
            raise DataError(f"{folder} has images of one shape to train on and of another to test on")
        self._target, self.batch = target, batch
        self.train_samples, self.test_samples = len(self._train), len(self._test)
        if batch > self.train_samples:
            raise JobError(f"[workload] batch = {batch}, but {folder} has {self.train_samples} training samples")
        self._order = TrainOrder(self.train_samples, batch, seed)
        self.shape, self.attributes = self._train.fields["images"].shape, self._train.attributes
        std = torch.as_tensor(self.attributes["std"]).float().view(-1, 1, 1)
        gain, offset = float(self.attributes["scale"]) / std, torch.as_tensor(self.attributes["mean"]).float()
        self._scaling = {CPU: (gain, offset.view(-1, 1, 1) / std)}  # by device

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        for shards in (self._train, self._test):
            shards.verify(rank, size)
            shards.require_values(self._target, 0, self.most_target, rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        step = start
        while True:
            yield self.train_part(self._order.indices(step, rank, size), self.batch)
            step += 1

    def by_index(self) -> Samples:
        return Samples(self.train_samples, self.batch, self.train_part)

    def train_part(self, indices: np.ndarray, global_size: int) -> TensorBatch:
        """Training samples by their numbers, (n,), as a part of a global batch."""
        return self._read(self._train, indices, global_size)

    def pictures(self, batch: TensorBatch) -> Tensor:
        """A batch's images with zero mean and unit variance in each channel, (n, channels, height, width), float32.
        Until they are where the model is they stay as they are stored, mostly a byte a value.
        """
        images = batch.tensors["images"]
        if images.device not in self._scaling:
            gain, offset = self._scaling[CPU]
            self._scaling[images.device] = gain.to(images.device), offset.to(images.device)
        gain, offset = self._scaling[images.device]
        return (images.float() * gain).sub_(offset)

    def test_batches(self, rank: int, size: int) -> Iterator[TensorBatch]:
        mine = share(np.arange(self.test_samples), rank, size)
        for start in range(0, len(mine), TEST_BATCH):
            yield self._read(self._test, mine[start : start + TEST_BATCH], self.test_samples)

    def _read(self, shards: Shards, indices: np.ndarray, global_size: int) -> TensorBatch:
        rows = shards.rows(indices)
        images = torch.from_numpy(rows["images"])
        targets = torch.from_numpy(rows[self._target].astype(np.int64))
        return TensorBatch({"images": images, self._target: targets}, torch.from_numpy(indices), global_size)


def _check(shards: Shards, target: str, target_dims: int) -> None:
    where = f"the {shards.split} data in {shards.folder}"
    for name, dims, kinds in (("images", 3, "uif"), (target, target_dims, "uib")):
        dtype, shape = shards.fields[name]
        if len(shape) != dims or dtype.kind not in kinds:
            wanted = "numbers" if "f" in kinds else "integers"
            raise DataError(f"{where}: a row of {name} is {dtype} of shape {shape}, not {wanted} in {dims} dimensions")
    for name in ("scale", "mean", "std"):
        values = np.asarray(shards.attributes.get(name, ()))
        wanted_size = 1 if name == "scale" else shards.fields["images"].shape[0]
        if values.dtype.kind not in "uif" or values.size != wanted_size or not np.isfinite(values).all():
            raise DataError(f"{where}: attribute {name} should hold {wanted_size} finite numbers: prepare them again")
    if not (np.asarray(shards.attributes["std"]) > 0).all():
        raise DataError(f"{where}: attribute std, by which images are divided, should be above 0: prepare them again")
