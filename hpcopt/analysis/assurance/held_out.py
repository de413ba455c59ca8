"""Failures among a run's test samples, by class: evidence from before operation."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from hpcopt.analysis.assurance.sample_bounds import Samples
from hpcopt.errors import DataError
from hpcopt.runs import Run

TARGETS = ("labels", "targets")
ALL = "all"  # the class of samples without one


def count_failures(run: Run, score: str | None = None) -> Samples:
    """Score each test sample alone with the run's newest weights: one whose score is 0 is a failure.

    Args:
        run: of a job.
        score: that is 0 for a failure and the same for every success; by default the accuracy.

    Raises:
        DataError: the run has no test samples or no such score, or it takes more values than two.
        JobError, CheckpointError: the run is no job's, or has no checkpoint.
    """
    workload, model = run.workload, run.model
    name = score or next((name for name in workload.scores if name.endswith("accuracy")), "")
    where = run.directory.path
    if workload.scores.get(name) != "higher":
        known = ", ".join(workload.scores) or "none"
        raise DataError(f"{where} has no score {name or 'of accuracy'} that tells failures; it has {known}")
    names = getattr(workload, "attributes", {}).get("classes")
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    success: float | None = None
    with torch.no_grad():
        for sample in _samples(workload.test_batches(0, 1)):
            value = workload.finish({key: v.double() for key, v in workload.score(model, sample).items()})[name]
            if value and value != (success := success or value):
                raise DataError(f"{where}: {name} of one test sample is {value:g}, of another {success:g}, neither 0")
            kind = _class_of(sample, names)
            counts[kind] += 1
            failures[kind] += not value
    if not counts:
        raise DataError(f"{where} has no test samples: train with a test split, or give theta and eps")
    return Samples(dict(counts), dict(failures))


def _samples(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        yield from batch.split(len(batch))


def _class_of(sample: Any, names: Any) -> str:
    """The name of a sample's class, or its number."""
    tensors = getattr(sample, "tensors", {})
    target = next((tensors[key] for key in TARGETS if key in tensors), None)
    if target is None or target.shape != (1,) or target.is_floating_point():
        return ALL
    number = int(target)
    return str(names[number]) if isinstance(names, list) and 0 <= number < len(names) else str(number)
