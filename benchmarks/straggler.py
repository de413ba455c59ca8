"""Steps a second of elastic runs in which one rank is slow, with and without a bound on the wait for it.

    python benchmarks/straggler.py --ranks 3 --sleep-s 0.1 --patience-s 0.02

The last rank sleeps before each of its steps, as one that computes slowly would; what it skips to catch up it does not
sleep for. ``vote`` is Signum behind majority votes, ``local`` rounds of 10 steps of AdamW, ``gossip`` a round of
Push-Sum after each step of AdamW. Beside each stands the run in which nobody sleeps. Scores are those of the last
evaluation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcopt.config import Config
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.gossip import GossipConfig
from hpcopt.solvers.local.solver import LocalConfig

JOB = """
run = {{name = "straggler", steps = {steps}, elastic = true, log_every_s = 2, evaluate_every = {steps}}}
workload = {{data = "{data}", batch = 252, model = {{name = "mlp", hidden = [256, 256]}}}}
"""
SOLVERS = {
    "vote": """
[solver]
name = "benchmarks.straggler:SleepyVoteConfig"
sleep_s = {sleep_s}
optimizer = {{name = "signum", lr = 0.0005, momentum = 0.9}}
[exchange]
name = "vote"
{patience}
""",
    "local": """
[solver]
name = "benchmarks.straggler:SleepyLocalConfig"
sleep_s = {sleep_s}
every = 10
optimizer = {{name = "adamw", lr = 0.001}}
{patience}
""",
    "gossip": """
[solver]
name = "benchmarks.straggler:SleepyGossipConfig"
sleep_s = {sleep_s}
optimizer = {{name = "adamw", lr = 0.001}}
{patience}
""",
}


class Sleepy(Config):
    """Of a solver whose last rank is slow.

    Attributes:
        sleep_s: that it sleeps before a step.
    """

    sleep_s: float

    def build(self, task: Any, context: Any) -> Any:
        """Make the solver. Collective."""
        solver = super().build(task, context)
        step = solver.step

        def sleepy_step(batch: Any) -> Any:
            if solver.data_rank + 1 == solver.data_size and not solver.roll_call.decided_after(solver._step):
                time.sleep(self.sleep_s)
            return step(batch)

        solver.step = sleepy_step
        return solver


class SleepyVoteConfig(Sleepy, DataParallelConfig):
    """Votes."""


class SleepyLocalConfig(Sleepy, LocalConfig):
    """Local steps."""


class SleepyGossipConfig(Sleepy, GossipConfig):
    """Gossip."""


def measured(options: argparse.Namespace, folder: Path, solver: str, sleep_s: float, patience_s: float | None) -> Any:
    """One run."""
    patience = "" if patience_s is None else f"patience_s = {patience_s}"
    job, run_dir = folder / "job.toml", folder / f"{solver}-{sleep_s}-{patience_s}"
    text = JOB.format(steps=options.steps, data=options.data.absolute())
    text += SOLVERS[solver].format(sleep_s=sleep_s, patience=patience)
    job.write_text(text, encoding="utf-8")
    command = ["mpirun", "-n", str(options.ranks), sys.executable, "-m", "hpcopt.train", str(job)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    subprocess.run(
        [*command, "--run-dir", str(run_dir)], check=True, stdout=subprocess.DEVNULL, env=environment, timeout=600
    )
    with h5py.File(run_dir / "metrics.h5") as file:
        times_s = file["steps/time_s"][:]
        rounds = np.isfinite(file["steps/absent"][:])
        absent = file["steps/absent"][:][rounds]
        score = float(file["evaluations/test_accuracy"][-1])
    rate = (len(times_s) - 20) / (times_s[-1] - times_s[19])
    told = {"solver": solver, "sleep_s": sleep_s, "patience_s": patience_s, "steps_per_s": round(rate, 2)}
    return {**told, "rounds": len(absent), "absent": int(absent.sum()), "accuracy": round(score, 4)}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sleep-s", type=float, default=0.1)
    parser.add_argument("--patience-s", type=float, default=0.02)
    parser.add_argument("--data", type=Path, default=Path("data/digits"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for solver in SOLVERS:
            for sleep_s, patience_s in ((0.0, None), (options.sleep_s, None), (options.sleep_s, options.patience_s)):
                print(json.dumps(measured(options, Path(folder), solver, sleep_s, patience_s)), flush=True)


if __name__ == "__main__":
    main()
