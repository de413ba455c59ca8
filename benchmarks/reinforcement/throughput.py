"""How many environment steps a second ranks make: one process that does it all, and a learner with three collectors.
And what the cores could give: the process that does it all, twice at once, with nothing in common.

    python -m benchmarks.reinforcement.throughput --environment Hopper-v5 --steps 400

The same job on 1 rank, under mpiexec on 4, and on 1 rank twice at once, in turns; a step of the run is 48 steps of
environments and so many updates (--updates). Environments are stepped together and share a call of the policy: where
each collector has only one, calls cost more than ranks gain. A line of JSON a turn has environment steps a second after
the first quarter of the run, of both copies together where there are two, and the shares of the time that learner and
collectors waited for each other. Each rank has one thread, and all have the machine's cores as they are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.report.read import Run, read_run

BATCH = 48
JOB = """
[run]
name = "throughput"
steps = {steps}
evaluate_every = {steps}
threads = 1

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


def measured(ranks: int, copies: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """So many runs at once, of so many ranks each."""
    job = folder / "job.toml"
    names = ("environment", "environments", "steps", "updates")
    settings = {name: getattr(options, name) for name in names}
    job.write_text(JOB.format(**settings, batch=BATCH), encoding="utf-8")
    launcher = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
    folders = [folder / f"run{copy}" for copy in range(copies)]
    command = [*launcher, sys.executable, "-m", "hpcopt.train", str(job), "--run-dir"]
    begun = [subprocess.Popen([*command, str(each)], stdout=subprocess.DEVNULL) for each in folders]
    codes = [one.wait() for one in begun]
    if any(codes):
        sys.exit(f"a run failed: exit codes {codes}")
    runs = [read_run(each) for each in folders]
    idle = {
        name: float(np.nanmean(runs[0].columns[name][len(runs[0].columns[name]) // 4 :]))
        for name in ("learner_idle", "collector_idle")
        if ranks > 1
    }
    return {"ranks": ranks, "copies": copies, **settings, "per_s": sum(map(rate, runs)), **idle}


def rate(run: Run) -> float:
    """Environment steps a second after the first quarter."""
    steps, times_s = run.columns["env_steps"], run.columns["time_s"]
    first = len(steps) // 4
    return float((steps[-1] - steps[first]) / (times_s[-1] - times_s[first]))


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
        for ranks, copies in ((1, 1), (4, 1), (1, 2)):
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(measured(ranks, copies, options, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
