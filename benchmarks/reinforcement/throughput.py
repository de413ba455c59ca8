"""How many environment steps a second ranks make: one process that does it all, and a learner with three collectors.

    python -m benchmarks.reinforcement.throughput --environment Hopper-v5 --steps 400

The same job on 1 rank and, under mpiexec, on 4, in turns; a step of the run is 48 steps of environments and so many
updates (--updates). Environments are stepped together and share a call of the policy: where each collector has only
one, calls cost more than ranks gain. A line of JSON a turn has environment steps a second after the first quarter of
the run, and the shares of the time that learner and collectors waited for each other. Both have the machine's cores as
they are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.report.read import read_run

BATCH = 48
JOB = """
[run]
name = "throughput"
steps = {steps}
evaluate_every = {steps}

[workload]
name = "control"
environment = "{environment}"
environments = {environments}
batch = {batch}
test = 1

[solver]
name = "actor_critic"
updates = {updates}
warmup = {batch}
"""


def measured(ranks: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run."""
    job = folder / "job.toml"
    names = ("environment", "environments", "steps", "updates")
    settings = {name: getattr(options, name) for name in names}
    job.write_text(JOB.format(**settings, batch=BATCH), encoding="utf-8")
    command = [sys.executable, "-m", "hpcopt.train", str(job), "--run-dir", str(folder / "run")]
    if ranks > 1:
        command = ["mpiexec", "-n", str(ranks), *command]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = read_run(folder / "run")
    steps, times_s = run.columns["env_steps"], run.columns["time_s"]
    first = len(steps) // 4
    idle = {
        name: float(np.nanmean(run.columns[name][first:])) for name in ("learner_idle", "collector_idle") if ranks > 1
    }
    rate = float((steps[-1] - steps[first]) / (times_s[-1] - times_s[first]))
    return {"ranks": ranks, **settings, "per_s": rate, **idle}


def main() -> None:
    """Measure."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--environment", default="Hopper-v5")
    p.add_argument("--environments", type=int, default=12, help="over all collectors (%(default)s)")
    p.add_argument("--steps", type=int, default=400, help="of the run (%(default)s)")
    p.add_argument("--updates", type=int, default=1, help="in each of them (%(default)s)")
    p.add_argument("--turns", type=int, default=3)
    options = p.parse_args()
    for _ in range(options.turns):
        for ranks in (1, 4):
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(measured(ranks, options, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
