"""Scores that a job names in a word, and those of anybody's by dotted name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hpcopt.errors import JobError
from hpcopt.shapes.score import Score
from hpcopt.shapes.workload import Better
from hpcopt.workloads.own.theirs import theirs
from hpcopt.workloads.own.user_code import function

BINS = 4096  # of network outputs between 0 and 1, for the area under a curve


class Mean:
    """A score that is a mean over samples."""

    def __init__(self, better: Better, of: Callable[[Any, Any], Tensor]) -> None:
        """Args:
        better: which way it improves.
        of: gives a value for each sample, (n, ...), of outputs and targets, or their mean, ().
        """
        self.better, self._of = better, of

    def update(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        value = self._of(outputs, targets)
        if value.dim() == 0:  # already a mean over the batch
            rows = len(_first(targets))
            return {"sum": value.double() * rows, "samples": torch.tensor(float(rows))}
        value = value.double().flatten(1).mean(1) if value.dim() > 1 else value.double()
        return {"sum": value.sum(), "samples": torch.tensor(float(len(value)))}

    def finish(self, sums: Mapping[str, Tensor]) -> float:
        return float(sums["sum"] / sums["samples"])


class Perplexity:
    """The exponential of the mean cross-entropy over all predicted tokens; outputs (n, classes, ...), targets (n, ...),
    of which -100 are left out.
    """

    better: Better = "lower"

    def update(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {
            "sum": F.cross_entropy(outputs, targets, reduction="sum").double(),
            "tokens": (targets != -100).sum(),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> float:
        return math.exp(min(float(sums["sum"] / sums["tokens"]), 700.0))


class Auc:
    """Area under the receiver operating characteristic of two classes: outputs (n,) or (n, 1) are logits, or (n, 2);
    targets (n,), 0 or 1. Outputs are counted in 4096 bins of their probability, a pair in one bin counts half.
    """

    better: Better = "higher"

    def update(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        logits = outputs[:, 1] - outputs[:, 0] if outputs.dim() == 2 and outputs.shape[1] == 2 else outputs.reshape(-1)
        bins = (torch.sigmoid(logits.double()) * BINS).long().clamp(0, BINS - 1)
        positive = targets.reshape(-1) > 0.5
        return {
            "positive": torch.bincount(bins[positive], minlength=BINS),
            "negative": torch.bincount(bins[~positive], minlength=BINS),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> float:
        positive, negative = sums["positive"], sums["negative"]
        below = negative.cumsum(0) - negative
        return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def _first(targets: Any) -> Tensor:
    while not isinstance(targets, Tensor):
        targets = next(iter(targets.values() if isinstance(targets, Mapping) else targets))
    return targets


BUILTIN: dict[str, Callable[[], Score]] = {
    "accuracy": lambda: Mean("higher", lambda outputs, targets: (outputs.argmax(1) == targets).double()),
    "top5_accuracy": lambda: Mean(
        "higher", lambda outputs, targets: (outputs.topk(5).indices == targets[:, None]).any(1).double()
    ),
    "mean_squared_error": lambda: Mean("lower", lambda outputs, targets: (outputs - targets.view_as(outputs)) ** 2),
    "mean_absolute_error": lambda: Mean("lower", lambda outputs, targets: (outputs - targets.view_as(outputs)).abs()),
    "perplexity": Perplexity,
    "auc": Auc,
}


def scores_of(names: tuple[str, ...]) -> dict[str, Score]:
    """The scores of a job by the names that evaluations print.

    Raises:
        JobError: one is no score, or two have one name.
    """
    found: dict[str, Score] = {}
    for name in names:
        with theirs(f'[workload] scores: "{name}"', JobError):
            score = BUILTIN[name]() if name in BUILTIN else own_score(name)
            printed = f"test_{getattr(score, 'name', '') or name.rpartition(':')[2].rpartition('.')[2].lower()}"
        if printed in found or printed == "test_loss":
            raise JobError(f'[workload] scores: two are called {printed}; give "{name}" a `name` of its own')
        found[printed] = score
    return found


def own_score(name: str) -> Score:
    """A score by dotted name: an object or a class with ``better``, ``update`` and ``finish``, or a function of outputs
    and targets, with ``better``, whose value is a mean over samples.
    """
    what = f'[workload] scores: "{name}"'
    score = function(name, {}, what)
    if getattr(score, "better", None) not in ("higher", "lower"):
        raise JobError(f'{what} does not say which way it improves: give it better = "higher" or "lower"')
    if hasattr(score, "update") and hasattr(score, "finish"):
        whole: Score = score
        return whole
    if callable(score):
        return Mean(score.better, score)
    raise JobError(f"{what} is no score: it needs update(outputs, targets) and finish(sums), or is a function")
