"""What a Session adds to a step of a bare torch loop, and what `import hpcopt` takes.

    python benchmarks/session.py
    mpirun -n 2 python benchmarks/session.py

Each repeat times a bare loop and the same loop in a Session, one behind the other; the medians of their ratios are
printed, of wall time and of this rank's processor time. A step is as many matrix products as take some 10 ms.
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

import hpcopt
from hpcopt.comm.world import World, connect

Seconds = tuple[float, float]  # wall, processor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--repeats", type=int, default=5)
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


def loop(steps: Iterable[object], step: Callable[[], torch.Tensor], log: Callable[[torch.Tensor], None]) -> Seconds:
    """Both kinds look at the loss. Gives wall and processor seconds from the first step's beginning to the last's:
    what a run does once, before and after its steps, is not counted.
    """
    times = []
    for _ in steps:
        times.append((time.perf_counter(), time.process_time()))
        log(step())
    return times[-1][0] - times[0][0], times[-1][1] - times[0][1]


def in_session(world: World, folder: Path, steps: int, step: Callable[[], torch.Tensor]) -> Seconds:
    """Those of the loop in a Session with a module and an optimizer to keep."""
    with contextlib.redirect_stdout(io.StringIO()), hpcopt.Session(folder, steps=steps, world=world) as session:
        model = torch.nn.Linear(100, 100)
        session.keep(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        return loop(session.steps(), step, lambda loss: session.log(loss=loss))


def import_ms() -> float:
    """Milliseconds of processor time that the package takes beyond the interpreter: the least of several."""
    code = "import time; s = time.process_time(); import hpcopt; print(1e3 * (time.process_time() - s))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
    return min(float(done.stdout) for done in runs)


def main() -> None:
    options = parser.parse_args()
    world, step, ratios = connect(), step_of(options.step_ms / 1e3), []
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(world.gather_text(folder)[0])
        for repeat in range(options.repeats):
            bare = loop(range(options.steps), step, float)
            ours = in_session(world, shared / str(repeat), options.steps, step)
            ratios.append([mine / plain for mine, plain in zip(ours, bare, strict=True)])
            if world.rank == 0:
                bare_ms, ours_ms = (seconds[1] / options.steps * 1e3 for seconds in (bare, ours))
                print(f"bare {bare_ms:.3f} ms, Session {ours_ms:.3f} ms of processor time a step", flush=True)
        world.barrier()
    if world.rank == 0:
        wall, core = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"Session / bare loop: {wall:.4f} wall, {core:.4f} processor time; import hpcopt: {import_ms():.1f} ms")


if __name__ == "__main__":
    main()
