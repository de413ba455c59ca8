"""Failures among test samples, of any workload that scores a sample as failed or not."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hpcopt.analysis.assurance.held_out import count_failures
from hpcopt.errors import DataError
from hpcopt.shapes.batch import TensorBatch


class Work:
    """Samples are right where they are positive; ``by`` is what a right one scores."""

    def __init__(self, values, targets=None, by=lambda value: (value > 0).double(), **attributes):
        self.scores, self.by = {"test_loss": "lower", "test_accuracy": "higher"}, by
        self.values, self.targets = torch.tensor(values), targets
        self.__dict__.update(attributes)

    def test_batches(self, rank, size):
        for first in range(0, len(self.values), 4):
            tensors = {"inputs": self.values[first : first + 4]}
            if self.targets is not None:
                tensors["targets"] = torch.tensor(self.targets[first : first + 4])
            yield TensorBatch(tensors, torch.arange(len(tensors["inputs"])), len(self.values))

    def score(self, model, batch):
        return {"test_accuracy": self.by(model(batch.tensors["inputs"])).sum(), "test_loss": torch.zeros(())}

    def finish(self, sums):
        return {name: float(total) / len(self.values) for name, total in sums.items()}


def run(work):
    return SimpleNamespace(workload=work, model=nn.Identity(), directory=SimpleNamespace(path=Path("run")))


def test_samples_are_counted_by_class_where_they_have_one():
    values, targets = [1.0, -1, 1, 1, -1, -1, 1], [0, 0, 1, 1, 1, 2, 2]
    samples = count_failures(run(Work(values, targets)))
    assert samples.counts == {"0": 2, "1": 3, "2": 2}
    assert samples.failures == {"0": 1, "1": 1, "2": 1}
    samples = count_failures(run(Work(values, targets, attributes={"classes": ["shirt", "shoe", "bag"]})))
    assert samples.failures == {"shirt": 1, "shoe": 1, "bag": 1}
    for others in (None, [0.5] * 7):  # no targets, or none that are classes
        assert count_failures(run(Work(values, others))).counts == {"all": 7}


def test_what_does_not_tell_failures_is_one_error():
    with pytest.raises(DataError, match=r"run: test_accuracy of one test sample is .*, of another .*, neither 0"):
        count_failures(run(Work([1.0, 2.0], by=lambda value: value)))
    with pytest.raises(DataError, match="run has no test samples"):
        count_failures(run(Work([])))
    with pytest.raises(DataError, match="run has no score test_loss that tells failures"):
        count_failures(run(Work([1.0])), "test_loss")
    with pytest.raises(DataError, match="run has no score of accuracy that tells failures"):
        work = Work([1.0])
        work.scores = {"test_loss": "lower"}
        count_failures(run(work))
