"""Images into classes: cross-entropy, top-1 accuracy, and top-5 where there are enough classes for it to mean much."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import DataError
from hpcopt.families import IMAGE_MODELS
from hpcopt.models.config import ImageModelConfig
from hpcopt.models.mlp import MlpConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.workload import Better, WorkloadConfig
from hpcopt.workloads.images import ImageWorkload

FEW_CLASSES = 10
UNLABELLED = -1


class ImageClassificationConfig(WorkloadConfig):
    """Image classification on HDF5 shards made by ``python -m hpcopt.prepare``."""

    name: Literal["image_classification"] = "image_classification"
    data: Path = Field(Path("data/digits"), description="folder of shards")
    batch: int = Field(128, ge=1, description="samples in one step, over all ranks")
    labelled: float = Field(
        1.0, gt=0, le=1, description="fraction of the training samples whose labels are seen; the others have no loss"
    )
    model: Annotated[ImageModelConfig, IMAGE_MODELS] = Field(MlpConfig(), description="the network")

    @property
    def folder(self) -> Path:
        return self.data

    def build(self, context: Context) -> "ImageClassification":
        """Open the data and make the model.

        Raises:
            DataError: the shards are missing or are not labelled images.
        """
        return ImageClassification(self, context.run_seed)


class ImageClassification(ImageWorkload):
    """The workload; the target is ``labels``, (n,)."""

    def __init__(self, config: ImageClassificationConfig, seed: int) -> None:
        super().__init__(config.data, "labels", 0, config.batch, seed)
        if not isinstance(self.attributes.get("classes"), list):
            raise DataError(f"{config.data} has no list of classes: prepare it again")
        classes = len(self.attributes["classes"])
        self.most_target = classes - 1
        self._top5 = classes > FEW_CLASSES
        self.scores: Mapping[str, Better] = {"test_loss": "lower", "test_accuracy": "higher"}
        if self._top5:
            self.scores = {**self.scores, "test_top5_accuracy": "higher"}
        self.loss = OutputLoss(
            inputs=self.pictures,
            criterion=lambda logits, batch: cross_entropy(logits, batch.tensors["labels"]),
            example=torch.zeros(1, *self.shape),
        )
        self._labelled = config.labelled
        self._hidden = torch.from_numpy(unlabelled(self.train_samples, config.labelled, seed))
        torch.manual_seed(seed)
        self.model: nn.Module = config.model.build(self.shape, classes)

    def train_part(self, indices: np.ndarray, global_size: int) -> TensorBatch:
        batch = super().train_part(indices, global_size)
        if self._labelled < 1:
            batch.tensors["labels"][self._hidden[batch.indices]] = UNLABELLED
        return batch

    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        logits, labels = model(self.pictures(batch)), batch.tensors["labels"]
        scores = {
            "test_loss": F.cross_entropy(logits, labels, reduction="sum"),
            "test_accuracy": (logits.argmax(1) == labels).sum(),
        }
        if self._top5:
            scores["test_top5_accuracy"] = (logits.topk(5).indices == labels[:, None]).sum()
        return scores


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all samples, shape (); one without a label counts as 0, so that no other's weight depends on it."""
    return F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / len(labels)


def unlabelled(samples: int, labelled: float, seed: int) -> np.ndarray:
    """Which samples hide their labels, shape (samples,), bool: all but a fraction, drawn at random, of at least one."""
    hidden = np.ones(samples, dtype=bool)
    hidden[np.random.default_rng(seed).permutation(samples)[: max(1, round(labelled * samples))]] = False
    return hidden
