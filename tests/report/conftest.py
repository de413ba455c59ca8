"""A run whose every figure is known: 40 steps on 3 ranks, written by the code that training uses."""

import json
from pathlib import Path

import numpy as np
import pytest

from hpcopt.store.metrics import MetricsFile, software

PHASES = ("data", "forward", "exchange", "checkpoint")
CONFIG = {"run": {"name": "known"}, "workload": {"name": "images", "batch": 30}, "solver": {"name": "sgd", "lr": 0.1}}


def make_run(folder: Path, ranks: int = 3, steps: int = 40, lr: float = 0.1, **attributes: object) -> MetricsFile:
    """Steps of 10 ms on every rank but the last, which takes 12 ms (1 data, 4 or 6 forward, 5 exchange); the first ten
    take a second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = MetricsFile(folder / "metrics.h5")
    config = {**CONFIG, "solver": {"name": "sgd", "lr": lr}}
    known = {"title": "known", "config": json.dumps(config), "hostnames": ["n1", "n1", "n2"], "threads": 1}
    file.create(ranks, PHASES, {**software(), **known, **attributes})
    if steps:
        append(file, 0, steps, ranks)
    return file


def append(file: MetricsFile, first: int, steps: int, ranks: int) -> None:
    step = np.arange(first + 1, first + steps + 1)
    phase_s = np.tile(np.array([0.001, 0.004, 0.005, 0.0]), (steps, ranks, 1))
    phase_s[:, -1, 1] += 0.002
    phase_s[: min(10, steps), :, 0] = 1
    phase_s[-1, :, 3] = 0.5
    wall = phase_s[:, 0].sum(1)
    columns = {
        "step": step,
        "epoch": step / 20,
        "time_s": step / 10,
        "step_s": wall,
        "loss": 1 / step,
        "samples": step * 30,
    }
    sent = np.full((steps, ranks), 100)
    file.append_steps(columns, phase_s, sent, 4 * sent)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    file = make_run(tmp_path / "known")
    for step, accuracy in ((20, 0.5), (40, 0.75)):
        file.append_evaluation(step, step / 10, {"test_accuracy": accuracy, "test_loss": 1 - accuracy})
    file.finish("all steps done", 0)
    return tmp_path / "known"
