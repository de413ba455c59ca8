"""What every workload promises the trainer, as functions that raise AssertionError; ``check_workload`` runs them all.

    from hpcopt.testing.workload import check_workload

    def test_mine():
        check_workload(MyWorkloadConfig(batch=11))

Batches may be of any kind: they are compared by the loss of the network on them.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hpcopt.shapes.context import Context
from hpcopt.shapes.workload import Workload, WorkloadConfig

STEPS, SEED = 7, 3


def check_workload(config: WorkloadConfig, *, ranks: Iterable[int] = (1, 2, 3), steps: int = STEPS) -> None:
    """Run every check below.

    Args:
        config: of the workload; its batch must have a sample for each rank.
        ranks: numbers of them to try.
        steps: how far to go; with more than an epoch has, its end is tried too.

    Raises:
        AssertionError: naming the promise.
    """
    sizes = tuple(ranks)
    check_same_start(config)
    check_same_batches(config, sizes, steps)
    check_mean(config)
    check_scores(config, sizes)
    for size in sizes:
        check_resume(config, size, steps)
        for rank in range(size):
            built(config).verify(rank, size)


def built(config: WorkloadConfig, seed: int = SEED) -> Workload:
    """A fresh workload whose network is ready to be evaluated: dropout is off."""
    workload = config.made(Context(run_seed=seed))
    workload.model.eval()
    return workload


def check_same_start(config: WorkloadConfig) -> None:
    """The network begins the same for one seed, whatever was drawn before."""
    one = built(config).model.state_dict()
    torch.rand(1)
    for name, value in built(config).model.state_dict().items():
        assert torch.equal(value, one[name]), f"{name} begins otherwise when the workload is built again with one seed"


def check_same_batches(config: WorkloadConfig, sizes: Sequence[int], steps: int) -> None:
    """Every global batch is the same samples at any number of ranks, and the ranks' weights add up to 1."""
    expected = [sum(loss for loss, _ in step) for step in _global_steps(config, 1, steps)]
    for size in sizes:
        for number, step in enumerate(_global_steps(config, size, steps)):
            weight, loss = sum(w for _, w in step), sum(loss for loss, _ in step)
            assert math.isclose(weight, 1, rel_tol=1e-6), f"the weights of {size} ranks add up to {weight}, not to 1"
            assert math.isclose(loss, expected[number], rel_tol=1e-4, abs_tol=1e-6), (
                f"the loss of batch {number} is {loss} on {size} ranks and {expected[number]} on one"
            )


def check_resume(config: WorkloadConfig, size: int, steps: int) -> None:
    """From any step on, a fresh workload gives the same bits as one that came there, its state having been saved."""
    cut = steps // 2
    straight = _losses([built(config) for _ in range(size)], size, 0, steps)
    before = [built(config) for _ in range(size)]
    _losses(before, size, 0, cut)
    states = [workload.state_dict() for workload in before]
    after = [built(config) for _ in range(size)]
    for workload in after:
        workload.load_state_dict(states)
    resumed = _losses(after, size, cut, steps - cut)
    assert resumed == [step[-(steps - cut) :] for step in straight], (
        f"on {size} ranks, batches from step {cut} on are others than those of a run that was not stopped"
    )


def check_mean(config: WorkloadConfig) -> None:
    """The loss is a mean over samples: micro-batches add up to their batch, by their weights."""
    workload = built(config)
    batch = next(workload.train_batches(0, 1, 0))
    whole = _loss(workload, batch) * batch.weight
    parts = batch.split(3)
    assert 0 < len(parts) <= 3 and all(len(part) for part in parts), "split(3) gives one to three parts, none empty"
    total = sum(_loss(workload, part) * part.weight for part in parts)
    assert math.isclose(total, whole, rel_tol=1e-4, abs_tol=1e-6), (
        f"the losses of micro-batches add up to {total}, and that of their batch is {whole}"
    )


def check_scores(config: WorkloadConfig, sizes: Sequence[int]) -> None:
    """Scores are the same at any number of ranks, each one that the workload announces, with a direction."""
    expected = _scores(built(config), 1)
    workload = built(config)
    assert expected.keys() == workload.scores.keys(), f"scores are {[*expected]}, announced are {[*workload.scores]}"
    assert set(workload.scores.values()) <= {"lower", "higher"}, "a score says that lower or higher is better"
    for size in sizes:
        for name, value in _scores(workload, size).items():
            assert math.isclose(value, expected[name], rel_tol=1e-4, abs_tol=1e-6), (
                f"{name} is {value} on {size} ranks and {expected[name]} on one"
            )


def _global_steps(config: WorkloadConfig, size: int, steps: int) -> list[list[tuple[float, float]]]:
    """Each rank's (weight times loss, weight), for every step."""
    parts: list[list[tuple[float, float]]] = []
    for rank in range(size):
        workload = built(config)
        batches = islice(workload.train_batches(rank, size, 0), steps)
        parts.append([(_loss(workload, batch) * batch.weight, batch.weight) for batch in batches])
    return [list(step) for step in zip(*parts, strict=True)]


def _losses(workloads: Sequence[Workload], size: int, start: int, steps: int) -> list[list[float]]:
    """Of each rank and step; each rank has a workload of its own."""
    return [
        [_loss(workload, batch) for batch in islice(workload.train_batches(rank, size, start), steps)]
        for rank, workload in enumerate(workloads)
    ]


def _loss(workload: Workload, batch: Any) -> float:
    with torch.no_grad():
        return float(workload.loss(workload.model, batch))


def _scores(workload: Workload, size: int) -> dict[str, float]:
    sums: dict[str, Tensor] = {}
    for rank in range(size):
        for batch in workload.test_batches(rank, size):
            with torch.no_grad():
                added = workload.score(workload.model, batch)
            for name, value in added.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.double()
    return workload.finish(sums)
