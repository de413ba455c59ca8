"""Tasks on which optimizers are compared: a model with its data and its loss.

Their data:

    python -m hpcopt.prepare fashion-mnist
    python -m hpcopt.prepare fashion-segmentation
    python -m hpcopt.prepare manual
    python -m hpcopt.prepare python-doc --level subword --words 2048 --name python-pieces
    python -m hpcopt.prepare bert --words 1024 --sequences 32 --mask-at-run-time --data-dir data/mini
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hpcopt
from benchmarks.kaisa.convergence import Task as Pictures
from hpcopt.models.bert import BertConfig
from hpcopt.models.causal.transformer import TransformerConfig
from hpcopt.models.unet import UNetConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.workload import Workload, WorkloadConfig
from hpcopt.solvers.kaisa.targets import Distribution
from hpcopt.workloads.bert_pretraining import BertPretrainingConfig
from hpcopt.workloads.language_model import LanguageModelConfig
from hpcopt.workloads.segmentation import SegmentationConfig


class Task(ABC):
    """A model with its data and its loss."""

    model: nn.Module
    terms_per_sample = 1.0  # over which the loss is a mean

    @abstractmethod
    def batch(self) -> Any:
        """The next one."""

    @abstractmethod
    def loss(self, batch: Any, kaisa: hpcopt.Kaisa | None) -> Tensor:
        """Of a batch; where factors are due, K-FAC records the passes of sampled targets."""

    @abstractmethod
    def samples(self, batch: Any) -> int:
        """How many there are in a batch."""

    def terms(self, batch: Any) -> float:
        """Over which the loss of a batch is a mean."""
        return self.samples(batch) * self.terms_per_sample

    @abstractmethod
    def held_out(self) -> float:
        """Loss of the held-out data."""


class OfWorkload(Task):
    """A workload's."""

    def __init__(self, config: WorkloadConfig, seed: int, terms: float, score: str, held_out: int) -> None:
        self.workload: Workload = config.build(Context(run_seed=seed))
        self.workload.test_samples = held_out
        self.model = self.workload.model
        self._batches, self.terms_per_sample, self._score = self.workload.train_batches(0, 1, 0), terms, score

    def batch(self) -> Any:
        return next(self._batches)

    def loss(self, batch: Any, kaisa: hpcopt.Kaisa | None) -> Tensor:
        return self.workload.loss(self.model, batch)

    def samples(self, batch: Any) -> int:
        return len(batch)

    @torch.no_grad()
    def held_out(self) -> float:
        sums: dict[str, Tensor] = {}
        for batch in self.workload.test_batches(0, 1):
            for name, value in self.workload.score(self.model, batch).items():
                sums[name] = sums.get(name, torch.zeros(())) + value.double()
        return self.workload.finish(sums)[self._score]


class OfPictures(Task):
    """Those of convergence.py."""

    def __init__(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        self._task = Pictures(name)
        self.model = self._task.model()
        self._generator = torch.Generator().manual_seed(seed)
        self._distribution: Distribution = "bernoulli" if name == "autoencoder" else "categorical"

    def batch(self) -> tuple[Tensor, Tensor]:
        x, labels = self._task.train
        rows = torch.randint(0, len(x), (self._task.batch,), generator=self._generator)
        return x[rows], labels[rows]

    def loss(self, batch: tuple[Tensor, Tensor], kaisa: hpcopt.Kaisa | None) -> Tensor:
        outputs = self._task.outputs(self.model, batch[0])
        if kaisa is not None and kaisa.settings.fisher == "sampled" and kaisa.factors_due:
            kaisa.sample(outputs, self._distribution, generator=self._generator)
        return self._task.loss(outputs, *batch)

    def samples(self, batch: tuple[Tensor, Tensor]) -> int:
        return len(batch[0])

    def held_out(self) -> float:
        return self._task.evaluate(self.model, self._task.held_out)["loss"]


BYTES = LanguageModelConfig(
    batch=16, length=64, evaluate_on="validation", test_samples=128, model=TransformerConfig(layers=4, width=128)
)
PIECES = BYTES.model_copy(update={"data": Path("data/python-pieces")})
UNET = SegmentationConfig(batch=64, model=UNetConfig(depth=2, width=8))
BERT = BertPretrainingConfig(
    data="data/mini/bert/32", batch=64, test_samples=256, model=BertConfig(size="mini", dropout=0.0)
)

ENDS: dict[str, list[str]] = {  # embeddings and what gives logits, of which methods of matrices leave hands
    "language_model": ["^word", "^place", "^head"],
    "pieces": ["^word", "^place", "^head"],
    "bert_mini": ["word", "position", "segment", "decoder", "next_sentence"],
}


def task(name: str, seed: int) -> Task:
    """One by name.

    >>> task("autoencoder", seed=0).model[0].in_features
    784
    """
    if name in ("autoencoder", "resnet"):
        return OfPictures(name, seed)
    config, *others = {
        "language_model": (BYTES, 64.0, "test_loss", 128),
        "pieces": (PIECES, 64.0, "test_loss", 128),
        "unet": (UNET, 48.0 * 48.0, "test_loss", 512),
        "bert_mini": (BERT, 5.0, "test_masked_loss", 256),
    }[name]
    return OfWorkload(config, seed, *others)
