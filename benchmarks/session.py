"""What a Session adds to a step of a bare torch loop, and what `import hpcopt` takes.

    python benchmarks/session.py
    mpirun -n 2 python benchmarks/session.py

A pair is a few steps of a bare loop and as many of a loop in a Session, one behind the other, so that whatever else the
machine does meets both. Printed are the medians of the pairs' ratios, of wall time and of this rank's processor time,
and the ratio of all pairs together, in which checkpoints and writes of metrics are: as many steps apart as they are by
default in a run of its own, whose time is not half the bare loop's. A step is as many matrix products as take some
10 ms.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import hpcopt
from hpcopt.comm.world import World, connect
from hpcopt.trainer.pace import LEAST_S
from hpcopt.trainer.run import RunConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pairs", type=int, default=200)
parser.add_argument("--steps", type=int, default=3, help="of each kind in a pair")
parser.add_argument("--step-ms", type=float, default=10.0)


def step_of(step_s: float) -> Callable[[], torch.Tensor]:
    """Work that takes about so long on a free core."""
    x = torch.randn(256, 256) / 16

    def product() -> torch.Tensor:
        return x @ x

    def timed() -> float:
        start_s = time.process_time()
        product()
        return time.process_time() - start_s

    seconds = min(timed() for _ in range(200))
    count = max(1, round(step_s / seconds))

    def step() -> torch.Tensor:
        for _ in range(count):
            y = product()
        return y.mean()

    return step


def seconds(body: Callable[[], object]) -> np.ndarray:
    """Wall and processor seconds that a body takes, (2,)."""
    start = time.perf_counter(), time.process_time()
    body()
    return np.array([time.perf_counter(), time.process_time()]) - start


def pairs(world: World, folder: Path, count: int, steps: int, step: Callable[[], torch.Tensor]) -> np.ndarray:
    """Seconds of a bare loop and of one in a Session with a module and an optimizer to keep, (pairs, 2, 2)."""
    every = {
        "checkpoint_every": world.broadcast_integers([max(1, round(LEAST_S / seconds(step)[0]))])[0],
        "log_every_s": 2 * RunConfig.model_fields["log_every_s"].default,
    }
    with (
        contextlib.redirect_stdout(io.StringIO()),
        hpcopt.Session(folder, steps=steps * count + 2, world=world, **every) as own,
    ):
        model = torch.nn.Linear(100, 100)
        own.keep(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        under_way = own.steps()
        next(under_way)  # what a run does once before its steps is not counted

        def bare() -> None:
            for _ in range(steps):
                float(step())  # both kinds look at the loss

        def in_session() -> None:
            for _ in range(steps):
                own.log(loss=step())
                next(under_way)

        in_session()  # nor is the first, which imports
        times = np.array([[seconds(bare), seconds(in_session)] for _ in range(count - 1)])
        under_way.close()
    return times


def import_ms() -> float:
    """Milliseconds of processor time that the package takes beyond the interpreter: the least of several."""
    code = "import time; s = time.process_time(); import hpcopt; print(1e3 * (time.process_time() - s))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
    return min(float(done.stdout) for done in runs)


def main() -> None:
    options = parser.parse_args()
    world, step = connect(), step_of(options.step_ms / 1e3)
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(world.gather_text(folder)[0])
        times = pairs(world, shared / "run", options.pairs, options.steps, step)
        world.barrier()
    if world.rank == 0:
        wall, core = np.median(times[:, 1] / times[:, 0], axis=0)
        bare_ms, ours_ms = np.median(times[:, :, 1], axis=0) / options.steps * 1e3
        print(f"medians of processor time a step: bare {bare_ms:.3f} ms, in a Session {ours_ms:.3f} ms")
        print(f"Session / bare loop: {wall:.4f} wall, {core:.4f} processor time", end="; ")
        print(f"of all together {times[:, 1, 1].sum() / times[:, 0, 1].sum():.4f}; import hpcopt: {import_ms():.1f} ms")


if __name__ == "__main__":
    main()
