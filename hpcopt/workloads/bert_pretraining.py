"""BERT pretraining: masked words, and whether the second sentence follows the first (arXiv:1810.04805).

Ranks have different numbers of masked tokens, so a mean over each rank's own would weigh tokens by where they are. Here
every token has the same weight: the loss of a batch of n sequences is the sum over its masked tokens divided by n times
a constant, the mean number of them in a sequence of the data, plus the mean loss of the sentence head. So the
trajectory depends neither on the number of ranks nor on how a batch is cut, and ranks need not count together.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import DataError, JobError
from hpcopt.families import TOKEN_MODELS
from hpcopt.models.bert import POSITIONS, Bert, BertConfig, import_weights
from hpcopt.models.config import TokenModelConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig
from hpcopt.store.sentence_pairs import SentencePairs, read_vocabulary
from hpcopt.workloads.ahead import ahead
from hpcopt.workloads.masking import mask_tokens, predicted
from hpcopt.workloads.order import share
from hpcopt.workloads.start_from import load_newest_weights
from hpcopt.workloads.streams import Rows, Streams

TEST_BATCH = 32
COUNTED_ROWS = 4096  # from which the mean number of masked tokens is taken
NO_TOKEN = -1


class BertPretrainingConfig(WorkloadConfig):
    """BERT pretraining on sentence pairs made by ``python -m hpcopt.prepare bert``, NVIDIA's or KAISA's tools."""

    name: Literal["bert_pretraining"] = "bert_pretraining"
    data: Path = Field(
        Path("data/bert/128"), description="folder with *.hdf5 in train (or training) and test, of one sequence length"
    )
    vocabulary: Path | None = Field(
        None, description="file of word pieces; by default vocab.txt in the data's folder or the one above"
    )
    batch: int = Field(64, ge=1, description="sequences in one step, over all ranks")
    test_samples: int = Field(1024, ge=1, description="most test sequences to evaluate on")
    model: Annotated[TokenModelConfig, TOKEN_MODELS] = Field(BertConfig(), description="the network")
    start_from: Path | None = Field(
        None,
        description="weights to begin with: a run directory, whose newest checkpoint counts, or a safetensors file",
    )

    @property
    def folder(self) -> Path:
        return self.data

    def words(self) -> list[str]:
        """The word pieces that the data are numbered by.

        Raises:
            DataError: there is no such file, or it is of another kind of network.
        """
        return _vocabulary(self)

    def build(self, context: Context) -> "BertPretraining":
        """Open the data and make the model.

        Raises:
            DataError: shards, vocabulary or weights are missing or do not fit each other.
        """
        return BertPretraining(self, context.run_seed)


class BertPretraining(Workload):
    """The workload."""

    ahead = True

    scores: Mapping[str, Better] = {
        "test_masked_loss": "lower",
        "test_masked_accuracy": "higher",
        "test_next_sentence_accuracy": "higher",
    }

    def __init__(self, config: BertPretrainingConfig, seed: int) -> None:
        self._train = SentencePairs(_split_folder(config.data, "train", "training"))
        self._test = SentencePairs(_split_folder(config.data, "test"))
        if max(self._train.sequence, self._test.sequence) > POSITIONS:
            raise DataError(f"{config.data} has sequences of {self._train.sequence} tokens; BERT takes {POSITIONS}")
        self.batch, self._seed = config.batch, seed
        self.train_samples, self.test_samples = len(self._train), min(len(self._test), config.test_samples)
        self._streams = Streams(self._train, self.batch, seed)
        if self._streams.steps_per_epoch == 0:
            raise JobError(
                f"[workload] batch = {self.batch}, but {config.data} has {self.train_samples} training sequences"
            )
        words = _vocabulary(config)
        self._words, self._mask_id = len(words), words.index("[MASK]")
        counted = min(COUNTED_ROWS, self.train_samples)
        self._masked_each = _masked_tokens(self._train, counted) / counted
        # scores are summed over sequences and divided by their number: this makes of them means over tokens
        self._per_token = self.test_samples / _masked_tokens(self._test, self.test_samples)
        torch.manual_seed(seed)
        self.model: nn.Module = config.model.build(self._words)
        if config.start_from is not None:
            load_weights(self.model, config.start_from)

    @property
    def steps_per_epoch(self) -> int:
        return self._streams.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        self._train.verify(self._words, rank, size)
        self._test.verify(self._words, rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        def made() -> Iterator[TensorBatch]:
            for epoch, numbers, rows in self._streams.batches(rank, size, start):
                yield self._batch(self._train, rows, numbers, epoch, self.batch)

        return ahead(made())

    def test_batches(self, rank: int, size: int) -> Iterator[TensorBatch]:
        mine = share(np.arange(self.test_samples), rank, size)
        for block in self._test.blocks(mine[0], mine[-1] + 1) if len(mine) else []:
            rows = self._test.read(block)
            for at in range(0, block.rows, TEST_BATCH):
                numbers = np.arange(block.first + at, block.first + min(at + TEST_BATCH, block.rows))
                piece = {name: values[at : at + TEST_BATCH] for name, values in rows.items()}
                yield self._batch(self._test, piece, numbers, 0, self.test_samples)

    def loss(self, model: nn.Module, batch: TensorBatch) -> Tensor:
        words, labels, follows = self._predict(model, batch)
        masked: Tensor = F.cross_entropy(words, labels, reduction="sum") / (len(batch) * self._masked_each)
        return masked + F.cross_entropy(follows, batch.tensors["next_sentence"])

    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        words, labels, follows = self._predict(model, batch)
        return {
            "test_masked_loss": F.cross_entropy(words, labels, reduction="sum") * self._per_token,
            "test_masked_accuracy": (words.argmax(1) == labels).sum() * self._per_token,
            "test_next_sentence_accuracy": (follows.argmax(1) == batch.tensors["next_sentence"]).sum(),
        }

    def _predict(self, model: nn.Module, batch: TensorBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the masked words (k, v), what the words are (k,), and logits of the sentence head (n, 2)."""
        t = batch.tensors
        there = (t["masked_ids"] != NO_TOKEN).nonzero(as_tuple=True)  # asked once: its length is data
        device = t["input_ids"].device
        places = t["masked_positions"] + torch.arange(len(batch), device=device)[:, None] * t["input_ids"].shape[1]
        words, follows = model(t["input_ids"], t["segment_ids"], t["input_mask"], places[there])
        return words, t["masked_ids"][there], follows

    def _batch(
        self, pairs: SentencePairs, rows: Rows, numbers: np.ndarray, epoch: int, global_size: int
    ) -> TensorBatch:
        if not pairs.masked:
            rows = self._hide(rows, numbers, epoch)
        positions, ids = (torch.from_numpy(rows[f"masked_lm_{name}"].astype(np.int64)) for name in ("positions", "ids"))
        tensors = {
            "input_ids": torch.from_numpy(rows["input_ids"]),
            "segment_ids": torch.from_numpy(rows["segment_ids"].astype(np.int32)),
            "input_mask": torch.from_numpy(rows["input_mask"].astype(bool)),
            "masked_positions": positions,
            "masked_ids": torch.where(positions > 0, ids, NO_TOKEN),  # place 0 is [CLS], never masked: padding
            "next_sentence": torch.from_numpy(rows["next_sentence_labels"].astype(np.int64)),
        }
        return TensorBatch(tensors, torch.from_numpy(numbers), global_size)

    def _hide(self, rows: Rows, numbers: np.ndarray, epoch: int) -> Rows:
        """Give the six arrays of rows that come with three."""
        special = rows["special_token_positions"]
        hidden = mask_tokens(
            rows["input_ids"],
            special,
            numbers,
            seed=self._seed,
            epoch=epoch,
            words=self._words,
            mask_id=self._mask_id,
        )
        places = np.arange(rows["input_ids"].shape[1])
        until_end = places <= special[:, 2:]
        return {
            "input_ids": hidden.input_ids,
            "input_mask": until_end,
            "segment_ids": (places > special[:, 1:2]) & until_end,
            "masked_lm_positions": hidden.positions,
            "masked_lm_ids": hidden.ids,
            "next_sentence_labels": rows["next_sentence_labels"],
        }


def load_weights(model: nn.Module, source: Path) -> None:
    """Begin with the weights of a run's newest checkpoint, or of a safetensors file with published names.

    Raises:
        DataError: there are none, or they are of another network.
    """
    if source.suffix == ".safetensors":
        assert isinstance(model, Bert)
        import_weights(model, source)
        return
    load_newest_weights(model, source)


def _split_folder(data: Path, *names: str) -> Path:
    for name in names:
        if (data / name).is_dir():
            return data / name
    raise DataError(f"no folder {names[0]} in {data}: make the data with `python -m hpcopt.prepare bert`")


def _vocabulary(config: BertPretrainingConfig) -> list[str]:
    """The word pieces that the data are numbered by.

    Raises:
        DataError: there is no such file, or it is of another kind of network.
    """
    candidates = (
        [config.vocabulary] if config.vocabulary else [f / "vocab.txt" for f in (config.data, config.data.parent)]
    )
    for path in candidates:
        if path.is_file():
            words = read_vocabulary(path)
            if "[MASK]" not in words:
                raise DataError(f"{path} is not a vocabulary for BERT: it lacks [MASK]")
            return words
    raise DataError(f"no vocabulary at {' or '.join(map(str, candidates))}: name it, [workload] vocabulary")


def _masked_tokens(pairs: SentencePairs, rows: int) -> int:
    """Number of tokens to predict in the first rows.

    Raises:
        DataError: there are none.
    """
    total = 0
    for block in pairs.blocks(0, rows):
        values = pairs.read(block)
        if pairs.masked:
            total += int((values["masked_lm_positions"] > 0).sum())
        else:
            total += int(predicted(values["special_token_positions"], pairs.sequence).sum())
    if total == 0:
        raise DataError(f"{pairs.folder} has no token to predict in its first {rows} sequences")
    return total
