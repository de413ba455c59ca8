"""Which pixels of an image belong to the object: per-pixel cross-entropy, and the Dice score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import JobError
from hpcopt.families import MASK_MODELS
from hpcopt.models.config import ImageModelConfig
from hpcopt.models.unet import UNetConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.workload import Better, WorkloadConfig
from hpcopt.workloads.images import ImageWorkload


class SegmentationConfig(WorkloadConfig):
    """Segmentation of images with masks, from HDF5 shards made by ``python -m hpcopt.prepare``."""

    name: Literal["segmentation"] = "segmentation"
    data: Path = Field(Path("data/fashion-segmentation"), description="folder of shards")
    batch: int = Field(64, ge=1, description="images in one step, over all ranks")
    model: Annotated[ImageModelConfig, MASK_MODELS] = Field(UNetConfig(), description="the network")

    @property
    def folder(self) -> Path:
        return self.data

    def build(self, context: Context) -> "Segmentation":
        """Open the data and make the model.

        Raises:
            DataError: the shards are missing or are not images with masks.
        """
        return Segmentation(self, context.run_seed)


class Segmentation(ImageWorkload):
    """The workload; the target is ``masks``, (n, height, width), 1 on the object and 0 elsewhere."""

    most_target = 1

    scores: Mapping[str, Better] = {"test_loss": "lower", "test_dice": "higher"}

    def __init__(self, config: SegmentationConfig, seed: int) -> None:
        super().__init__(config.data, "masks", 2, config.batch, seed)
        self.loss = OutputLoss(
            inputs=self.pictures,
            criterion=lambda logits, batch: F.binary_cross_entropy_with_logits(logits[:, 0], _masks(batch)),
            example=torch.zeros(1, *self.shape),
        )
        torch.manual_seed(seed)
        try:
            self.model: nn.Module = config.model.build(self.shape, 1)
        except ValueError as cause:
            raise JobError(f"[workload] model: {cause}: choose a smaller depth") from cause

    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        logits, masks = model(self.pictures(batch))[:, 0], _masks(batch)
        losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2))
        return {"test_loss": losses.sum(), "test_dice": dice((logits > 0).float(), masks).sum()}


def dice(found: Tensor, masks: Tensor) -> Tensor:
    """Dice score of each image, (n,): ``2 |A and B| / (|A| + |B|)``, and 1 where both are empty.

    Args:
        found: 1 where the object was found, 0 elsewhere, (n, height, width).
        masks: where it is, likewise.
    """
    both, either = 2 * (found * masks).sum((1, 2)), found.sum((1, 2)) + masks.sum((1, 2))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def _masks(batch: TensorBatch) -> Tensor:
    return batch.tensors["masks"].float()
