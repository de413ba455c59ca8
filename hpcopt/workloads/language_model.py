"""Language modelling: predict each token of a text from those before it in its window.

A text of N tokens is cut into windows: number n predicts the tokens ``n length + 1`` to ``(n + 1) length``, and sees
those from ``n length`` on. A step takes windows of all places in the text, in a new order each epoch
(``hpcopt.workloads.order``); nothing is carried from one window to another. In training an incomplete last window is
left out. Of a text to evaluate on every token but the first is predicted, once.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import DataError, JobError
from hpcopt.families import CAUSAL_MODELS
from hpcopt.models.causal.config import CausalModelConfig
from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig
from hpcopt.store.text import StoredText
from hpcopt.workloads.order import TrainOrder, share
from hpcopt.workloads.start_from import load_newest_weights

TEST_BATCH = 32
LARGEST_EXPONENT = 700.0  # of a perplexity that float64 holds


class LanguageModelConfig(WorkloadConfig):
    """Language modelling on a text made by ``python -m hpcopt.prepare text``."""

    name: Literal["language_model"] = "language_model"
    data: Path = Field(Path("data/manual"), description="folder of the text's shards")
    batch: int = Field(32, ge=1, description="windows in one step, over all ranks")
    length: int = Field(64, ge=1, description="tokens that a window predicts")
    evaluate_on: Literal["test", "validation"] = Field("test", description="text that scores are of")
    test_samples: int | None = Field(None, ge=1, description="most windows to evaluate on, from the first on")
    model: Annotated[CausalModelConfig, CAUSAL_MODELS] = Field(LstmConfig(), description="the network")
    start_from: Path | None = Field(
        None, description="weights to begin with: a run directory, whose newest checkpoint counts"
    )

    @property
    def folder(self) -> Path:
        return self.data

    def build(self, context: Context) -> "LanguageModel":
        """Open the text and make the model.

        Raises:
            DataError: the text is missing, damaged, or shorter than two tokens; or so are the weights to begin with.
            JobError: it has fewer windows than a batch, or the network's settings do not suit each other.
        """
        return LanguageModel(self, context.run_seed)


class LanguageModel(Workload):
    """The workload."""

    ahead = True

    def __init__(self, config: LanguageModelConfig, seed: int) -> None:
        self._text, self._length, self._split = StoredText(config.data), config.length, config.evaluate_on
        self.batch, self.scores = config.batch, _scores(self._text)
        tokens = {split: len(shards) for split, shards in self._text.splits.items()}
        if tokens[self._split] < 2:
            raise DataError(f"{config.data} has {tokens[self._split]} tokens in {self._split}, and needs two")
        there = -(-(tokens[self._split] - 1) // config.length)
        self.test_samples = min(there, config.test_samples or there)
        self.train_samples = max(0, tokens["train"] - 1) // config.length
        if self.train_samples < self.batch:
            raise JobError(
                f"[workload] batch = {self.batch} windows of length = {config.length}, but {config.data} has "
                f"{self.train_samples} of them to train on"
            )
        self._order = TrainOrder(self.train_samples, self.batch, seed)
        self._nbytes = torch.from_numpy(self._text.nbytes)
        torch.manual_seed(seed)
        try:
            self.model: nn.Module = config.model.build(self._text.words, config.length)
        except ValueError as cause:
            raise JobError(f"[workload.model]: {cause}") from cause
        if config.start_from is not None:
            load_newest_weights(self.model, config.start_from)

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        self._text.verify(rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        step = start
        while True:
            yield self._windows("train", self._order.indices(step, rank, size), self.batch)
            step += 1

    def by_index(self) -> Samples:
        return Samples(self.train_samples, self.batch, lambda numbers, whole: self._windows("train", numbers, whole))

    def test_batches(self, rank: int, size: int) -> Iterator[TensorBatch]:
        mine = share(np.arange(self.test_samples), rank, size)
        for start in range(0, len(mine), TEST_BATCH):
            yield self._windows(self._split, mine[start : start + TEST_BATCH], self.test_samples)

    def loss(self, model: nn.Module, batch: TensorBatch) -> Tensor:
        """Mean over the tokens of complete windows."""
        losses, there, _ = _predicted(model, batch)
        return (losses * there).sum() / (len(batch) * self._length)

    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        losses, there, targets = _predicted(model, batch)
        nbytes = self._nbytes.to(targets.device)[targets]
        return {"loss": (losses.double() * there).sum(), "tokens": there.sum(), "bytes": (nbytes * there).sum()}

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Loss is minus the mean logarithm of a token's probability, and perplexity its exponential; bits per byte are
        the sum to base 2 by the bytes of text that the tokens stand for.
        """
        loss = float(sums["loss"] / sums["tokens"])
        found = {"test_loss": loss, "test_perplexity": math.exp(min(loss, LARGEST_EXPONENT))}
        if "test_bits_per_byte" in self.scores:
            found["test_bits_per_byte"] = float(sums["loss"] / sums["bytes"]) / math.log(2)
        return found

    def _windows(self, split: str, numbers: np.ndarray, global_size: int) -> TensorBatch:
        tokens = torch.from_numpy(self._text.windows(split, numbers, self._length))
        return TensorBatch({"tokens": tokens}, torch.from_numpy(numbers), global_size)


def _scores(text: StoredText) -> dict[str, Better]:
    """Bits per byte are told of tokens that say which bytes they stand for."""
    names = ["test_loss", "test_perplexity", *(["test_bits_per_byte"] if text.nbytes.any() else [])]
    return dict.fromkeys(names, "lower")


def _predicted(model: nn.Module, batch: TensorBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each token, (n, length), float32; whether there is one, bool; and which, 0 where there is none."""
    tokens = batch.tensors["tokens"]
    known = tokens.clamp(min=0)
    return model(known[:, :-1], known[:, 1:]), tokens[:, 1:] >= 0, known[:, 1:]
