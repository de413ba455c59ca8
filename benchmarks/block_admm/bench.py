"""Runs of solvers on Fashion-MNIST in memory, and the file that collects them."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.comm.world import alone
from hpcopt.exchange import RingConfig
from hpcopt.phases import PhaseClock
from hpcopt.solvers.solver import Batch, OutputLoss
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder

RESULTS = Path("runs/benchmarks/block_admm.h5")

LOSS = OutputLoss(
    inputs=lambda batch: batch.tensors["images"],
    criterion=lambda logits, batch: F.cross_entropy(logits, batch.tensors["labels"]),
    example=torch.zeros(1, 784),
)


@dataclass(frozen=True)
class Images:
    """Pixels (n, 784), of mean 0 and variance 1 over the training set, and labels (n,)."""

    x: Tensor
    y: Tensor

    def batches(self, batch: int, steps: int, seed: int) -> Iterator[Batch]:
        """The global batches that a job with this seed would see."""
        order = TrainOrder(len(self.y), batch, seed)
        for step in range(steps):
            rows = torch.from_numpy(order.indices(step, 0, 1))
            yield Batch({"images": self.x[rows], "labels": self.y[rows]}, rows, len(rows))

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of images whose largest logit is the label's."""
        return float((model(self.x).argmax(1) == self.y).double().mean())


def fashion_mnist(samples: int = 60000) -> tuple[Images, Images]:
    """The first training samples, and the 10,000 test samples, from data/fashion-mnist."""
    result = []
    for split, count in (("train", samples), ("test", 10000)):
        rows = Shards(Path("data/fashion-mnist"), split).rows(np.arange(count))
        x = torch.from_numpy(rows["images"]).float().flatten(1) / 255
        result.append(Images((x - 0.2860) / 0.3530, torch.from_numpy(rows["labels"].astype(np.int64))))
    return result[0], result[1]


def train(config: Any, model: nn.Module, train: Images, test: Images, *, batch: int, epochs: int, seed: int) -> dict:
    """Train with a solver; give the test accuracy after each epoch, the last epoch's mean loss, and seconds."""
    per_epoch = len(train.y) // batch
    solver = config.build(model, LOSS, alone(), RingConfig(), epochs * per_epoch, PhaseClock())
    losses: list[float] = []
    accuracies: list[float] = []
    spent_s = 0.0
    for step, data in enumerate(train.batches(batch, epochs * per_epoch, seed), start=1):
        start_s = time.perf_counter()
        stats = solver.step(data)
        spent_s += time.perf_counter() - start_s
        losses.append(stats.loss)
        if step % per_epoch == 0:
            accuracies.append(test.accuracy(model.eval()))
            model.train()
    return {"accuracy": accuracies, "loss": float(np.mean(losses[-per_epoch:])), "train_s": spent_s, **stats.extra}


def record(experiment: str, method: str, seed: int, figures: dict[str, Any]) -> None:
    """Keep the figures of a run, in place of an older one's."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    name = f"{experiment}/{method}/{seed}"
    with h5py.File(RESULTS, "a") as file:
        if name in file:
            del file[name]
        group = file.create_group(name)
        for key, value in figures.items():
            group.attrs[key] = value
    print(name, {k: np.round(v, 4).tolist() if not isinstance(v, str) else v for k, v in figures.items()}, flush=True)


def recorded(experiment: str) -> dict[str, list[dict[str, Any]]]:
    """The figures of all runs of an experiment, by method."""
    with h5py.File(RESULTS, "r") as file:
        return {m: [dict(file[experiment][m][s].attrs) for s in file[experiment][m]] for m in file[experiment]}


def spread(values: list[float], digits: int = 4) -> str:
    """Mean and the range over seeds, for a table."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def options(description: str, methods: list[str]) -> argparse.Namespace:
    """The command line that these benchmarks share."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--methods", nargs="*", default=[], choices=methods, help="what to run (default: print the table)")
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    return p.parse_args()
