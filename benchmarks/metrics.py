"""What metrics cost: a step's record beside a step of 10 ms, and the report over a long run of many ranks.

    python benchmarks/metrics.py [--ranks 128] [--steps 2000] [--report-steps 100000]

The record is measured on ranks that are threads of this process, in processor time of each rank's thread, which is what
a rank with a core to itself would spend; rank 0, which writes the file, is the slowest. Time in which ranks wait for
each other at the end of a block is no part of it. The report is the whole command, from start to exit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpcopt.comm.loopback import LoopbackTransport, run_ranks
from hpcopt.comm.world import World
from hpcopt.phases import PHASES, PhaseClock
from hpcopt.shapes.stats import StepStats
from hpcopt.store.metrics import MetricsFile, provenance
from hpcopt.trainer.recorder import Recorder

STEP_S = 0.010
REPORT = """
import sys
from pathlib import Path
from hpcopt.report.__main__ import main
main()
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line), file=sys.stderr)
"""  # the peak of its own memory: what wait() tells includes what this process had when it forked
BLOCK = 5000


def record_s(ranks: int, steps: int, path: Path) -> np.ndarray:
    """Processor seconds a step that each rank spends on its record, (ranks,)."""
    file = MetricsFile(path)
    file.create(ranks, PHASES, {**provenance(), "title": "cost", "config": "{}"})

    def program(transport: LoopbackTransport) -> float:
        recorder = Recorder(World(transport), file, PhaseClock(), 0.0)
        start_s = time.thread_time()
        for step in range(1, steps + 1):
            recorder.step(step, step / 100, step * 32, StepStats(loss=1 / step, learning_rate=0.1))
        recorder.flush()
        return (time.thread_time() - start_s) / steps

    return np.array(run_ranks(ranks, program))


def long_run(ranks: int, steps: int, path: Path) -> None:
    """Write a run of so many ranks and steps."""
    file = MetricsFile(path)
    config = json.dumps({"run": {"name": "long"}, "workload": {"batch": 32 * ranks}})
    file.create(ranks, PHASES, {**provenance(), "title": "long", "config": config})
    rng = np.random.default_rng(0)
    for first in range(0, steps, BLOCK):
        step = np.arange(first + 1, first + BLOCK + 1)
        phase_s = rng.gamma(4, STEP_S / 4 / len(PHASES), (BLOCK, ranks, len(PHASES))).astype(np.float32)
        columns = {"step": step, "time_s": step * STEP_S, "step_s": phase_s.sum(2).max(1), "loss": 1 / step}
        sent = np.full((BLOCK, ranks), 1_000_000)
        file.append_steps({**columns, "samples": step * 32 * ranks}, phase_s, sent, 2 * sent)
    file.finish("all steps done", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--report-steps", type=int, default=100_000, help=f"a multiple of {BLOCK}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spent_s = record_s(options.ranks, options.steps, Path(folder) / "cost.h5")
        print(f"record of a step on {options.ranks} ranks, processor time: rank 0 {spent_s[0] * 1e6:.0f} us,", end=" ")
        print(f"median rank {np.median(spent_s) * 1e6:.0f} us; {spent_s.max() / STEP_S:.2%} of a step of 10 ms at most")
        long_run(options.ranks, options.report_steps, Path(folder) / "metrics.h5")
        for kind, extra in (("terminal", []), ("page", ["--html", f"{folder}/page.html"])):
            start_s = time.perf_counter()
            command = [sys.executable, "-c", REPORT, folder, *extra]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            wall_s, peak_bytes = time.perf_counter() - start_s, int(done.stderr.split()[-2]) * 1024
            size = f"{options.ranks} x {options.report_steps:,}"
            print(f"report, {kind}, {size}: {wall_s:.2f} s, {peak_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
