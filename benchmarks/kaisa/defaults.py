"""What a job gets that says ``name = "kaisa"`` and nothing else, and with a setting that its advice names.

    python -m benchmarks.kaisa.defaults language_model '{}' '{"method": "auto", "step_lr": 0.01}'

A run is of seed 0, the rate falling linearly, by default for a quarter of the task's steps; a line of defaults.jsonl
each. Settings are a job's ``[solver]``: the optimizer is the solver's own, of all parameters. The advice is what a
job's log would have.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import hpcopt
from benchmarks.kaisa.trial import Arm, Training
from benchmarks.kaisa.which import STEPS
from hpcopt.comm.world import alone
from hpcopt.optim.groups import set_learning_rate
from hpcopt.solvers.kaisa.advice import Adviser
from hpcopt.solvers.kaisa.solver import KaisaConfig

RUNS = Path(__file__).with_name("defaults.jsonl")


class Job(Training):
    """A training as the solver does it."""

    def __init__(self, task: str, config: KaisaConfig, seed: int, steps: int) -> None:
        self.config, self.advice = config, dict[str, str]()
        super().__init__(task, Arm(config.optimizer), config.optimizer.lr, seed, steps)
        assert self.kaisa is not None
        self._adviser = Adviser(self.kaisa, self.model, frozenset(config.model_fields_set), steps)

    def _optimizer(self, seed: int) -> torch.optim.Optimizer:
        settings = self.config.preconditioner()
        self.kaisa = hpcopt.Kaisa(self.model, alone(), lr=lambda: self.lr * self.part, seed=seed, **settings)
        return self.config.optimizer_of(self.model)

    def step(self) -> None:
        assert self.kaisa is not None
        set_learning_rate(self.optimizer, self.lr * self.part)
        batch = self.task.batch()
        self.optimizer.zero_grad()
        self.task.loss(batch, self.kaisa).backward()
        self.kaisa.step(self.task.samples(batch) * self.config.terms_per_sample)
        for table in self._adviser.after_step().values():
            self.advice = dict(zip(table.values["setting"], table.values["advice"], strict=True))
        self.optimizer.step()
        self.done += 1


def run(task: str, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """A line of defaults.jsonl."""
    job, cpu_s = Job(task, KaisaConfig(**settings), 0, steps), 0.0
    for _ in range(steps):
        before = time.thread_time()
        job.step()
        cpu_s += time.thread_time() - before
    return {
        "task": task, "settings": settings, "steps": steps, "cpu_s": cpu_s / steps, "loss": job.held_out(),
        "advice": job.advice,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(STEPS))
    parser.add_argument("settings", type=json.loads, nargs="+", help="JSON, of [solver]")
    parser.add_argument("--steps", type=int)
    a = parser.parse_args()
    torch.set_num_threads(1)
    for settings in a.settings:
        row = run(a.task, settings, a.steps or STEPS[a.task] // 4)
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
