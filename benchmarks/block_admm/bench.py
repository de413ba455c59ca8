"""Runs of solvers on Fashion-MNIST in memory, and runs.jsonl, which collects them: a line a run.

Settings are chosen on training images that were held out (``--tune``), never on the test set.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.exchange import RingConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Task
from hpcopt.shapes.stats import Scalar
from hpcopt.store.shards import Shards
from hpcopt.workloads.image_classification import cross_entropy
from hpcopt.workloads.order import TrainOrder

RUNS = Path(__file__).with_name("runs.jsonl")
TUNED_ON = 50000  # training samples, when the last 10,000 choose settings

LOSS = OutputLoss(
    inputs=lambda batch: batch.tensors["images"],
    criterion=lambda logits, batch: cross_entropy(logits, batch.tensors["labels"]),
    example=torch.zeros(1, 784),
)


@dataclass(frozen=True)
class Images:
    """Pixels (n, 784), of mean 0 and variance 1 over the training set, and labels (n,)."""

    x: Tensor
    y: Tensor

    def batches(self, batch: int, steps: int, seed: int) -> Iterator[TensorBatch]:
        """The global batches that a job with this seed would see."""
        order = TrainOrder(len(self.y), batch, seed)
        for step in range(steps):
            rows = torch.from_numpy(order.indices(step, 0, 1))
            yield TensorBatch({"images": self.x[rows], "labels": self.y[rows]}, rows, len(rows))

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of images whose largest logit is the label's."""
        return float((model(self.x).argmax(1) == self.y).double().mean())


def fashion_mnist(samples: int = 60000, *, tune: bool = False) -> tuple[Images, Images]:
    """The first training samples of data/fashion-mnist and its 10,000 test samples; to choose settings by, at most the
    first 50,000 training samples, and its last 10,000 in place of the test set.
    """
    if tune:
        return images("train", np.arange(min(samples, TUNED_ON))), images("train", np.arange(TUNED_ON, 60000))
    return images("train", np.arange(samples)), images("test", np.arange(10000))


def images(split: str, indices: np.ndarray) -> Images:
    """Samples of a split of data/fashion-mnist."""
    rows = Shards(Path("data/fashion-mnist"), split).rows(indices)
    x = torch.from_numpy(rows["images"]).float().flatten(1) / 255
    return Images((x - 0.2860) / 0.3530, torch.from_numpy(rows["labels"].astype(np.int64)))


def train(config: Any, model: nn.Module, train: Images, test: Images, *, batch: int, epochs: int, seed: int) -> dict:
    """Train with a solver; give the accuracy after each epoch, the last epoch's mean loss, and CPU seconds of steps."""
    per_epoch = len(train.y) // batch
    solver = config.build(Task(model, LOSS), Context(exchange=RingConfig(), steps=epochs * per_epoch))
    losses: list[float] = []
    accuracies: list[float] = []
    spent_s = 0.0
    for step, data in enumerate(train.batches(batch, epochs * per_epoch, seed), start=1):
        start_s = time.process_time()
        stats = solver.step(data)
        spent_s += time.process_time() - start_s
        losses.append(stats.loss)
        if step % per_epoch == 0:
            accuracies.append(test.accuracy(model.eval()))
            model.train()
    scalars = {name: given.value if isinstance(given, Scalar) else given for name, given in stats.scalars.items()}
    return {"accuracy": accuracies, "loss": float(np.mean(losses[-per_epoch:])), "cpu_s": spent_s, **scalars}


Settings = dict[str, Any]  # what a method could run with, by a label


def run_all(
    experiment: str, methods: dict[str, Settings], choice: argparse.Namespace, run: Callable[..., dict[str, Any]]
) -> None:
    """Run the chosen methods and record ``run(method, setting, seed)``: to tune, with every setting they have; else
    with the best of those.
    """
    torch.set_num_threads(1)
    for method in choice.methods:
        settings = methods[method]
        labels = list(settings) if choice.tune else [chosen(experiment, method, settings)]
        if choice.best:
            labels = first_round(experiment, method, settings)[: choice.best]
        for label, seed in itertools.product(labels, choice.seeds):
            figures = run(method, settings[label], seed)
            record(experiment, method, label, seed, figures, tune=choice.tune)


def chosen(experiment: str, method: str, settings: Settings) -> str:
    """The setting that was best on held-out training images, in the mean over seeds, of those that were run with the
    most seeds: the better ones of a first round; the one there is, if a method has only one.

    Raises:
        SystemExit: the method has several, and no run tells which is best.
    """
    if len(settings) == 1:
        return next(iter(settings))
    scores: dict[str, list[float]] = {}
    for run in recorded(experiment, tune=True).get(method, []):
        if run["setting"] in settings:
            scores.setdefault(run["setting"], []).append(last(run["accuracy"]))
    if not scores:
        raise SystemExit(f"{experiment}: run --tune --methods {method} first")
    most = max(map(len, scores.values()))
    return max((s for s in scores if len(scores[s]) == most), key=lambda setting: float(np.mean(scores[setting])))


def first_round(experiment: str, method: str, settings: Settings) -> list[str]:
    """Settings from the best to the worst with seed 0 on held-out training images."""
    tried = [run for run in recorded(experiment, tune=True)[method] if run["seed"] == 0 and run["setting"] in settings]
    return [run["setting"] for run in sorted(tried, key=lambda run: -last(run["accuracy"]))]


def record(experiment: str, method: str, setting: str, seed: int, figures: dict[str, Any], *, tune: bool) -> None:
    """Append the figures of a run; of runs with the same names the last one counts."""
    names = {"experiment": experiment, "method": method, "setting": setting, "seed": seed, "tune": tune}
    line = json.dumps(names | figures, default=lambda value: np.asarray(value).tolist())
    line = json.dumps(json.loads(line, parse_float=lambda digits: float(f"{float(digits):.6g}")))
    with RUNS.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def recorded(experiment: str, *, tune: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The runs of an experiment by method: on the test set, or those to choose settings by."""
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    latest = {
        (run["method"], run["setting"], run["seed"]): run
        for run in runs
        if run["experiment"] == experiment and run["tune"] == tune
    }
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in latest.values():
        by_method.setdefault(run["method"], []).append(run)
    return by_method


def last(curve: float | Sequence[float]) -> float:
    """The last value of a curve, or the value."""
    return curve if isinstance(curve, float) else curve[-1]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and the range over seeds, for a table."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def options(description: str, methods: Sequence[str]) -> argparse.Namespace:
    """The command line that these benchmarks share."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--methods", nargs="*", default=[], choices=methods, help="what to run (default: print the table)")
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    p.add_argument("--tune", action="store_true", help="run every setting, scored on held-out training images")
    p.add_argument("--best", type=int, help="with --tune: only so many settings, the best with the first seed")
    return p.parse_args()
