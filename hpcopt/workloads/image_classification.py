"""Images into classes: cross-entropy, top-1 accuracy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.config import Config
from hpcopt.errors import DataError, JobError
from hpcopt.models.mlp import MlpConfig
from hpcopt.models.resnet import ResNetConfig
from hpcopt.solvers.solver import Batch, OutputLoss
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder, share

ModelConfig = Annotated[MlpConfig | ResNetConfig, Field(discriminator="name")]

TEST_BATCH = 256


class ImageClassificationConfig(Config):
    """Image classification on HDF5 shards made by ``python -m hpcopt.prepare``."""

    name: Literal["image_classification"] = "image_classification"
    data: Path = Field(Path("data/digits"), description="folder of shards")
    batch: int = Field(128, ge=1, description="samples in one step, over all ranks")
    model: ModelConfig = Field(MlpConfig(), description="the network")

    def build(self, seed: int) -> "ImageClassification":
        """Open the data and make the model.

        Raises:
            DataError: the shards are missing or are not labelled images.
        """
        return ImageClassification(self, seed)


class ImageClassification:
    """The workload. Shards hold ``images`` (n, channels, height, width), uint8, and ``labels`` (n,)."""

    scores: tuple[str, ...] = ("test_loss", "test_accuracy")

    def __init__(self, config: ImageClassificationConfig, seed: int) -> None:
        self._train, self._test = Shards(config.data, "train"), Shards(config.data, "test")
        for shards in (self._train, self._test):
            if not {"images", "labels"} <= shards.fields.keys():
                raise DataError(f"{config.data} holds {sorted(shards.fields)}, not images and labels")
        self.batch = config.batch
        self.train_samples, self.test_samples = len(self._train), len(self._test)
        if self.batch > self.train_samples:
            raise JobError(
                f"[workload] batch = {self.batch}, but {config.data} has {self.train_samples} training samples"
            )
        self._order = TrainOrder(self.train_samples, self.batch, seed)
        about = self._train.attributes
        std = torch.as_tensor(about["std"]).float().view(-1, 1, 1)
        self._gain = float(about["scale"]) / std  # pixel values to zero mean and unit variance in each channel
        self._offset = torch.as_tensor(about["mean"]).float().view(-1, 1, 1) / std
        self.loss = OutputLoss(
            inputs=lambda batch: batch.tensors["images"],
            criterion=lambda logits, batch: F.cross_entropy(logits, batch.tensors["labels"]),
            example=torch.zeros(1, *self._train.fields["images"][1]),
        )
        torch.manual_seed(seed)
        self.model: nn.Module = config.model.build(self._train.fields["images"][1], len(about["classes"]))

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        self._train.verify(rank, size)
        self._test.verify(rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[Batch]:
        step = start
        while True:
            yield self._read(self._train, self._order.indices(step, rank, size), self.batch)
            step += 1

    def test_batches(self, rank: int, size: int) -> Iterator[Batch]:
        mine = share(np.arange(self.test_samples), rank, size)
        for start in range(0, len(mine), TEST_BATCH):
            rows = mine[start : start + TEST_BATCH]
            yield self._read(self._test, rows, self.test_samples)

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits, labels = model(batch.tensors["images"]), batch.tensors["labels"]
        return {
            "test_loss": F.cross_entropy(logits, labels, reduction="sum"),
            "test_accuracy": (logits.argmax(1) == labels).sum(),
        }

    def _read(self, shards: Shards, indices: np.ndarray, global_size: int) -> Batch:
        rows = shards.rows(indices)
        images = torch.from_numpy(rows["images"]).float().mul_(self._gain).sub_(self._offset)
        labels = torch.from_numpy(rows["labels"].astype(np.int64))
        return Batch({"images": images, "labels": labels}, torch.from_numpy(indices), global_size)
