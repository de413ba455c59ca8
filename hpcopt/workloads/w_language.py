"""Find the letters in drawings of strings (``hpcopt.workloads.w_strings``), plain and stretched, of mixed lengths.

Sample i of a split is a function of the run's seed and of i: a string of a length and of letters that are drawn
uniformly. Every other sample is stretched: each of its columns comes as often as is drawn.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from hpcopt.errors import JobError
from hpcopt.families import FRAME_MODELS
from hpcopt.models.config import FrameModelConfig
from hpcopt.models.deductron import DeductronConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.workload import Better, WorkloadConfig
from hpcopt.workloads.drawn import TRAIN, DrawnWorkload
from hpcopt.workloads.w_strings import INPUTS, LETTERS, OUTPUTS, draw_string, frames_of, stretched

KEPT = 4096  # drawings in memory

Drawing = tuple[np.ndarray, np.ndarray]  # heights of columns, and targets of frames
Lengths = tuple[PositiveInt, PositiveInt]


class WLanguageConfig(WorkloadConfig):
    """Strings over X and O, drawn as columns of three pixels; a network marks each letter where it is first known."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {"model", "rewrites", "test", "test_lengths", "test_stretch", "precision", "compile"}
    )

    name: Literal["w_language"] = "w_language"
    batch: int = Field(64, ge=1, description="strings in one step, over all ranks")
    train: int = Field(64, ge=1, description="training strings, drawn by the seed")
    lengths: Lengths = Field((1, 4), description="least and most letters of a training string")
    stretch: int = Field(3, ge=1, description="most repeats of a column in every other training string; 1: none")
    test: int = Field(1000, ge=1, description="test strings, drawn by the seed")
    test_lengths: Lengths = Field((1, 8), description="least and most letters of a test string")
    test_stretch: int = Field(5, ge=1, description="most repeats of a column in every other test string")
    model: Annotated[FrameModelConfig, FRAME_MODELS] = Field(DeductronConfig(), description="the network")

    @model_validator(mode="after")
    def _lengths_ascend(self) -> "WLanguageConfig":
        for least, most in (self.lengths, self.test_lengths):
            if least > most:
                raise ValueError(f"lengths are the least and the most: there is none from {least} to {most}")
        return self

    def build(self, context: Context) -> "WLanguage":
        """Make the network; strings are drawn when they are needed.

        Raises:
            JobError: there are fewer strings than a batch needs, or the network does not suit their frames.
        """
        return WLanguage(self, context.run_seed)


class WLanguage(DrawnWorkload):
    """The workload. A batch's tensors are ``frames``, (n, T, 6); ``targets``, (n, T, 2), 1 where a letter is to be
    marked; ``mask``, (n, T, 1), 0 on the frames behind a string's end. All are float32.

    A string's loss is the sum of the squared errors of its frames. ``test_wrong`` is the share of strings that have a
    mark too many or too few.
    """

    samples = "strings"
    test_batch = 250
    scores: Mapping[str, Better] = {"test_loss": "lower", "test_wrong": "lower"}

    def __init__(self, config: WLanguageConfig, seed: int) -> None:
        super().__init__(config.train, config.test, config.batch, seed)
        self._config = config
        self._kept = lru_cache(KEPT)(self.sample)
        self.loss = OutputLoss(
            inputs=lambda batch: batch.tensors["frames"],
            criterion=lambda marks, batch: squared_error(marks, batch).sum() / max(1, len(batch)),
            example=torch.zeros(1, 2, INPUTS),
        )
        torch.manual_seed(seed)
        try:
            self.model: nn.Module = config.model.build(INPUTS, OUTPUTS)
        except ValueError as cause:
            raise JobError(f"[workload] model: {cause}") from cause

    def sample(self, split: int, index: int) -> Drawing:
        """The index'th drawing of a split, with its targets; one of an odd index is stretched."""
        config, draw = self._config, np.random.default_rng([self._seed, split, index])
        train = split == TRAIN
        least, most = config.lengths if train else config.test_lengths
        letters = draw.integers(len(LETTERS), size=draw.integers(least, most + 1))
        heights, targets = draw_string("".join(LETTERS[letter] for letter in letters))
        stretch = config.stretch if train else config.test_stretch
        times = draw.integers(1, stretch + 1, len(heights)) if index % 2 else np.ones(len(heights), np.int64)
        return stretched(heights, targets, times)

    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        marks = model(batch.tensors["frames"])
        return {"test_loss": squared_error(marks, batch).sum(), "test_wrong": wrong(marks, batch).sum()}

    def part(self, indices: np.ndarray, global_size: int, split: int = TRAIN) -> TensorBatch:
        return batch_of([self._kept(split, int(i)) for i in indices], torch.from_numpy(indices), global_size)


def batch_of(drawings: list[Drawing], indices: Tensor, global_size: int) -> TensorBatch:
    """Drawings, with their targets, as one batch."""
    frames = frames_of([heights for heights, _ in drawings])
    targets, mask = np.zeros((*frames.shape[:2], OUTPUTS), np.float32), np.zeros((*frames.shape[:2], 1), np.float32)
    for row, (_, own) in enumerate(drawings):
        targets[row, : len(own)], mask[row, : len(own)] = own, 1
    arrays = {"frames": frames, "targets": targets, "mask": mask}
    return TensorBatch({name: torch.from_numpy(x) for name, x in arrays.items()}, indices, global_size)


def squared_error(marks: Tensor, batch: TensorBatch) -> Tensor:
    """Summed over outputs and those frames that a string has, (n, T, 2)."""
    return (marks - batch.tensors["targets"]).square() * batch.tensors["mask"]


def wrong(marks: Tensor, batch: TensorBatch) -> Tensor:
    """Which strings have a mark too many or too few, (n,), bool; an output marks a frame above a half."""
    missed = ((marks > 0.5) != (batch.tensors["targets"] > 0.5)) & (batch.tensors["mask"] > 0)
    return missed.flatten(1).any(1)
