"""How many environment steps a second ranks make: one process that does it all, and a learner with three collectors.
And what the cores could give: the process that does it all, twice at once, with nothing in common.

    python -m benchmarks.reinforcement.throughput --environment Hopper-v5

The same job in turns: on 1 rank, with a thread and with two; on 4 ranks; and on 1 rank twice at once. A step of the run
is ``--batch`` steps of environments and ``--updates`` updates. Environments are stepped together and share a call of
the policy; long steps wake a collector seldom, and a core is slow while its caches have another's data. Each rank has
one thread, and collectors start under ``nice``: where the learner shares a core with one of them, it goes first, since
all wait for it. ``--nice 0`` shows what they are worth without.

A line of JSON a turn has environment steps a second after the first quarter of the run, of both copies together where
there are two, and the shares of the time that learner and collectors waited for each other.
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

JOB = """
[run]
name = "throughput"
steps = {steps}
evaluate_every = {steps}
threads = {threads}

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
lag = {lag}
"""
JOB_SETTINGS = ("environment", "environments", "batch", "updates", "steps", "lag")
TURN = ((1, 1, 1), (1, 2, 1), (4, 1, 1), (1, 1, 2))  # ranks, threads of each, copies at once


def measured(ranks: int, threads: int, copies: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """So many runs at once, of so many ranks each."""
    job = folder / "job.toml"
    settings = {name: getattr(options, name) for name in JOB_SETTINGS}
    job.write_text(JOB.format(**settings, threads=threads), encoding="utf-8")
    folders = [folder / f"run{copy}" for copy in range(copies)]
    commands = [launched(ranks, options.nice, [str(job), "--run-dir", str(each)]) for each in folders]
    begun = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    codes = [one.wait() for one in begun]
    if any(codes):
        sys.exit(f"a run failed: exit codes {codes}")
    runs = [read_run(each) for each in folders]
    idle = {
        name: round(float(np.nanmean(runs[0].columns[name][len(runs[0].columns[name]) // 4 :])), 3)
        for name in ("learner_idle", "collector_idle")
        if ranks > 1
    }
    who = {"ranks": ranks, "threads": threads, "copies": copies}
    return {**who, **settings, "per_s": round(sum(map(rate, runs)), 1), **idle}


def launched(ranks: int, niceness: int, arguments: list[str]) -> list[str]:
    """The command of a training: its first rank learns, the others, if there are any, collect."""
    training = [sys.executable, "-m", "hpcopt.train", *arguments]
    if ranks == 1:
        return training
    return ["mpiexec", "-n", "1", *training, ":", "-n", str(ranks - 1), "nice", "-n", str(niceness), *training]


def rate(run: Run) -> float:
    """Environment steps a second after the first quarter."""
    steps, times_s = run.columns["env_steps"], run.columns["time_s"]
    first = len(steps) // 4
    return float((steps[-1] - steps[first]) / (times_s[-1] - times_s[first]))


def main() -> None:
    """Measure."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--environment", default="Hopper-v5")
    p.add_argument("--environments", type=int, default=48, help="over all collectors (%(default)s)")
    p.add_argument("--batch", type=int, default=192, help="steps of environments in a step of the run (%(default)s)")
    p.add_argument("--updates", type=int, default=4, help="in a step of the run (%(default)s)")
    p.add_argument("--steps", type=int, default=120, help="of the run (%(default)s)")
    p.add_argument("--lag", type=int, default=2, help="steps that collectors are ahead (%(default)s)")
    p.add_argument("--nice", type=int, default=10, help="of collectors (%(default)s)")
    p.add_argument("--turns", type=int, default=3)
    options = p.parse_args()
    for _ in range(options.turns):
        for kind in TURN:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(measured(*kind, options, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
