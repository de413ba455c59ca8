"""How often, how far and how fast a ReLU teacher is found: functions of a point for `hpcopt study`.

    mpirun -n 2 hpcopt study benchmarks/teachers_init.toml      tensor initialisation and gradient descent
    mpirun -n 2 hpcopt study benchmarks/teachers_phase.toml     alternating minimisation: a phase diagram
    hpcopt study report studies/teachers_phase --value "near<1e-6,skip<1e-6,descent<1e-6" --x ratio --y units --png .
    python -m benchmarks.teachers studies/teachers_init         slopes, rates and floors, with intervals

A point is a small run of the package's own workload and solvers, on one rank. docs/results/known_answers.md has what
came out.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from hpcopt.exchange import RingConfig
from hpcopt.optim import SgdConfig
from hpcopt.shapes import Context, Solver, SolverConfig, Task
from hpcopt.solvers import DataParallelConfig, ReluAltMinConfig, TensorInitConfig
from hpcopt.solvers.relu_network.least_squares import Products
from hpcopt.solvers.relu_network.moments import weights_of_moments
from hpcopt.workloads import TeacherConfig
from hpcopt.workloads.recovery import recovery_error
from hpcopt.workloads.teacher import Teacher

DESCENT = SgdConfig(lr=0.5, momentum=0.0)
STEPS, SETTLED = 150, 50  # the second: from where on the rate is measured
PASSES, DONE = 25, 1e-12  # of alternating minimisation: at most; an error that ends it
RATE = 1.5  # of gradient descent, over the curvature at its start: the best of 0.5, 1, 1.5, 1.9 and 2.5 on other seeds


def initialised(point: Mapping[str, Any]) -> dict[str, float]:
    """Tensor initialisation, then gradient descent on all samples; and from a random start, with as many passes.

    Args:
        point: ``inputs``, ``units``, ``train``, ``noise``, ``seed``.

    Returns:
        ``start``, ``end`` and ``random``: recovery errors of the estimate, after STEPS steps from it, and after as many
        passes from a random start; ``rate``: the factor of the error in a step, over the last steps; ``bend``: how far
        the logarithm of the error is from a line there, at most.
    """
    workload = _workload(point, noise=point["noise"])
    samples = next(workload.train_batches(0, 1, 0)).tensors
    inputs, units = point["inputs"], point["units"]
    pieces = [(samples["inputs"], samples["targets"])]
    context = _context(point["seed"], STEPS)
    estimate = weights_of_moments(context.world, lambda: pieces, inputs, units, context.generator("tensor method"))
    errors = list(trained(workload, TensorInitConfig(optimizer=DESCENT), point["seed"], STEPS))
    *_, random = trained(
        _workload(point, noise=point["noise"]), DataParallelConfig(optimizer=DESCENT), point["seed"], STEPS + 3
    )
    fall = np.log(errors[SETTLED:])
    steps = np.arange(len(fall))
    line = np.polyfit(steps, fall, 1)
    return {
        "start": recovery_error([estimate], workload.teacher.totals()),
        "end": errors[-1],
        "random": random,
        "rate": math.exp(line[0]),
        "bend": float(np.abs(np.polyval(line, steps) - fall).max()),
    }


def recovered(point: Mapping[str, Any]) -> dict[str, float]:
    """Alternating minimisation from near the teacher, from a random start, and of the skip form from the identity; and
    gradient descent from near the teacher for as many seconds of the processor as the first took.

    Args:
        point: ``inputs``, ``units``, ``ratio`` of samples to unknowns, ``near``, ``skip``, ``seed``: the distance of
            the start from the teacher, and the length of the skip form's rows.

    Returns:
        Recovery errors ``near``, ``random``, ``skip`` and ``descent``; ``passes`` and ``steps``: of the first and the
        last; ``cpu_s``: that each of the two had.
    """
    train = max(1, round(point["ratio"] * point["inputs"] * point["units"]))
    near, far = {"start": point["near"], "perturbation": 1.0}, {"perturbation": 1.0}
    skip = {"skip": True, "perturbation": point["skip"]}
    begun = time.process_time()
    errors = list(_alternated(_workload(point, train=train, **near), point["seed"]))
    cpu_s = time.process_time() - begun
    descent, steps = descended(_workload(point, train=train, **near), cpu_s)
    others = {
        name: list(_alternated(_workload(point, train=train, **settings), point["seed"]))[-1]
        for name, settings in (("random", far), ("skip", skip))
    }
    return {"near": errors[-1], **others, "descent": descent, "passes": len(errors), "steps": steps, "cpu_s": cpu_s}


def trained(workload: Teacher, solver: SolverConfig, seed: int, steps: int) -> Iterator[float]:
    """The recovery error after each step on all samples."""
    task = Task(workload.model, workload.loss, workload.by_index())
    made: Solver = solver.build(task, _context(seed, steps))
    batches = workload.train_batches(0, 1, 0)
    for _ in range(steps):
        made.step(next(batches))
        yield recovery_error(workload.model.totals(), workload.teacher.totals())


def descended(workload: Teacher, cpu_s: float) -> tuple[float, int]:
    """The recovery error of gradient descent on all samples after so many seconds of the processor, and its steps.
    Lean: the gradient in closed form and nothing around it; what its rate takes is not counted.
    """
    batch = next(workload.train_batches(0, 1, 0))
    x, y = batch.tensors["inputs"], batch.tensors["targets"]
    curvature = float(torch.linalg.eigvalsh(Products(*workload.model.held(0, x)).gram())[-1])
    w, steps = workload.model.totals()[0].detach().clone(), 0
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        before = x @ w.T
        residual = before.relu().sum(1) - y
        w -= (RATE / curvature) * ((before > 0) * residual[:, None]).T @ x
        steps += 1
    return recovery_error([w], workload.teacher.totals()), steps


def _alternated(workload: Teacher, seed: int) -> Iterator[float]:
    for error in trained(workload, ReluAltMinConfig(), seed, PASSES):
        yield error
        if error < DONE:
            return


def _workload(point: Mapping[str, Any], **settings: Any) -> Teacher:
    """All samples in every batch."""
    sizes = {"inputs": point["inputs"], "hidden": (point["units"],), "test": 1}
    settings = {"train": point.get("train"), **sizes, **settings}
    return TeacherConfig(batch=settings["train"], **settings).build(Context(run_seed=point["seed"]))


def _context(seed: int, steps: int) -> Context:
    return Context(exchange=RingConfig(), steps=steps, run_seed=seed)


def main(folder: str) -> None:
    """Print what a study of ``initialised`` says: medians over teachers, and slopes with intervals of 95 %."""
    from scipy.stats import t

    from hpcopt.study import read_study

    table = read_study(folder)
    columns = {**table.axes, **table.results}

    def of(name: str, **where: float) -> np.ndarray:
        """A column by seed, where others have these values."""
        rows = np.all([columns[key] == value for key, value in where.items()], axis=0)
        return np.asarray(columns[name][rows])[np.argsort(columns["seed"][rows])]

    def slope(name: str, axis: str, at: list[float], **where: float) -> str:
        """Of logarithms, a line for each teacher."""
        errors = np.log([of(name, **{axis: value}, **where) for value in at])
        slopes = np.polyfit(np.log(at), errors, 1)[0]
        half = t.ppf(0.975, len(slopes) - 1) * slopes.std(ddof=1) / len(slopes) ** 0.5
        return f"{slopes.mean():.3f} +- {half:.3f} ({len(slopes)} teachers)"

    left = set(columns["train"][~np.isfinite(columns["start"])])  # numbers of samples with points that are to be done
    counts, noises = sorted({*columns["train"]} - left), sorted({*columns["noise"]})
    for train in counts:
        for noise in noises:
            found = {name: of(name, train=train, noise=noise) for name in ("start", "end", "random", "rate", "bend")}
            if len(found["start"]):
                medians = "  ".join(f"{k} {np.median(v):.2g} ({v.min():.2g}..{v.max():.2g})" for k, v in found.items())
                print(f"N {train:>6.0f}  noise {noise:<5g} {medians}")
    print("start over N:", slope("start", "train", counts, noise=0.0))
    print("end over N, noise 0.1:", slope("end", "train", counts, noise=0.1))
    several = max(counts, key=lambda train: len({*columns["noise"][columns["train"] == train]}))
    print(f"end over noise, N = {several:g}:", slope("end", "noise", [n for n in noises if n > 0], train=several))


if __name__ == "__main__":
    main(sys.argv[1])
