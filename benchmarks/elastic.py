"""A run whose ranks are killed again and again, beside one that is left alone; and what being ready for it costs.

    python benchmarks/elastic.py kills --ranks 4 --minutes 4 --every 15     goodput, and how soon the next step comes
    python benchmarks/elastic.py ready --ranks 2 --job jobs/fashion_resnet.toml     share of the time that copies take

``kills`` lets a job run for a minute undisturbed, then kills a random rank every so many seconds, with SIGKILL or, with
``--stop``, SIGSTOP. It prints steps kept a second beside those of the undisturbed minute, and repeats the disturbed run
by its recorded membership: the parameters must have the same bits. Ranks come back as they will.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from hpcopt.elastic.membership import Membership
from hpcopt.solvers.data_parallel import DataParallel, DataParallelConfig
from hpcopt.store.checkpoint import Checkpoints

JOB = """
[run]
name = "kills"
steps = 1000000
elastic = true
copy_every = 20
evaluate_every = 200
checkpoint_every = 1000000
[workload]
data = "{data}"
batch = 256
model = {{name = "mlp", hidden = [256, 256]}}
[solver]
name = "benchmarks.elastic:NotedConfig"
shard_optimizer = true
notes = "{notes}"
optimizer = {{name = "adamw", lr = 0.0005}}
"""


class NotedConfig(DataParallelConfig):
    """Data parallelism that notes when it was built, and when it has done a step.

    Attributes:
        notes: folder, of a file a process.
    """

    notes: Path

    def build(self, task: Any, context: Any) -> "Noted":
        """Make the solver. Collective."""
        return Noted(self, task, context)


class Noted(DataParallel):
    """The solver."""

    def __init__(self, config: NotedConfig, task: Any, context: Any) -> None:
        super().__init__(config, task, context)
        self._notes = (config.notes / f"{os.getpid()}").open("a", encoding="utf-8", buffering=1)
        self._notes.write(f"{time.time()} built\n")

    def step(self, batch: Any) -> Any:
        """One step, noted."""
        stats = super().step(batch)
        self._notes.write(f"{time.time()} {self._step}\n")
        return stats


def launched(job: Path, run_dir: Path, ranks: int, *settings: str) -> subprocess.Popen[bytes]:
    """Start a job by mpirun."""
    options = [option for setting in settings for option in ("--set", setting)]
    command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "hpcopt.train", str(job), "--run-dir", str(run_dir)]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, start_new_session=True)


def ranks_of(notes: Path) -> list[int]:
    """Processes that have taken a step and are there."""
    stepped = [file for file in notes.iterdir() if file.read_text(encoding="utf-8").count("\n") > 1]
    return [int(file.name) for file in stepped if Path(f"/proc/{file.name}").exists()]


def notes_in(folder: Path) -> tuple[list[float], list[tuple[float, int]]]:
    """When solvers were built, and when steps were done, in order of time."""
    built, steps = [], []
    for file in folder.iterdir():
        for line in file.read_text(encoding="utf-8").splitlines():
            second, what = line.split()
            if what == "built":
                built.append(float(second))
            else:
                steps.append((float(second), int(what)))
    return sorted(built), sorted(steps)


def back_after(kill_s: float, built: list[float], steps: list[tuple[float, int]]) -> float | None:
    """Seconds from a kill to the first step of a group that was formed after it."""
    formed = next((second for second in built if second > kill_s), None)
    return None if formed is None else next((second - kill_s for second, _ in steps if second > formed), None)


def digest(run_dir: Path, step: int) -> str:
    """Of the parameters."""
    model = Checkpoints(run_dir / "checkpoints", keep=2).read_part(step, "shared")["solver"]["model"]
    return hashlib.blake2b(b"".join(p.numpy().tobytes() for p in model.values()), digest_size=8).hexdigest()


def kills(options: argparse.Namespace, folder: Path) -> None:
    """Disturb a run, and repeat it."""
    draw, notes, job = random.Random(options.seed), folder / "notes", folder / "job.toml"
    notes.mkdir()
    job.write_text(JOB.format(data=options.data.absolute(), notes=notes), encoding="utf-8")
    process = launched(job, folder / "run", options.ranks)
    while len(ranks_of(notes)) < options.ranks:
        time.sleep(0.1)
    begin_s = time.time()
    time.sleep(options.undisturbed_s)
    calm_s = time.time()
    killed = []
    while time.time() < calm_s + 60 * options.minutes:
        killed.append(time.time())
        os.kill(draw.choice(ranks_of(notes)), signal.SIGSTOP if options.stop else signal.SIGKILL)
        time.sleep(options.every)
    end_s = time.time()
    process.send_signal(signal.SIGUSR1)
    process.wait()
    built, steps = notes_in(notes)

    def reached(second: float) -> int:
        """The last step that was done by then."""
        return [step for when, step in steps if when <= second][-1]

    calm = (reached(calm_s) - reached(begin_s)) / (calm_s - begin_s)
    disturbed = (reached(end_s) - reached(calm_s)) / (end_s - calm_s)
    back = [seconds for kill_s in killed if (seconds := back_after(kill_s, built, steps)) is not None]
    print(f"undisturbed: {calm:.2f} steps/s; with {len(killed)} kills: {disturbed:.2f}; goodput {disturbed / calm:.3f}")
    print(f"from a kill to the next step: median {median(back):.2f} s, longest {max(back):.2f} s")
    starts = Membership.of(folder / "run").starts
    (last,) = Checkpoints(folder / "run" / "checkpoints", keep=2).steps()[:1]
    with h5py.File(folder / "run" / "metrics.h5") as file:
        whole = np.array_equal(file["steps/step"][:], np.arange(1, last + 1))
        loss = float(file["steps/loss"][-100:].mean())
    print(f"{last} steps in {len(starts)} memberships; one row each: {whole}; loss of the last 100: {loss:.4f}")
    settings = [f"run.steps={last}", f"run.membership={folder / 'run'}"]
    launched(job, folder / "again", options.ranks, *settings).wait()
    print(f"repeated by its membership: same bits {digest(folder / 'again', last) == digest(folder / 'run', last)}")
    launched(job, folder / "calm", options.ranks, f"run.steps={last}").wait()
    with h5py.File(folder / "calm" / "metrics.h5") as file:
        print(f"undisturbed, the same steps: loss of the last 100: {file['steps/loss'][-100:].mean():.4f}")


def ready(options: argparse.Namespace, folder: Path) -> None:
    """What copies take of a job's time, in a run that nobody disturbs."""
    settings = [f"run.steps={options.steps}", "run.elastic=true", "run.copy_every=50", "run.checkpoint_every=1000000"]
    launched(options.job, folder / "run", options.ranks, *settings).wait()
    with h5py.File(folder / "run" / "metrics.h5") as file:
        steps = file["steps"]
        names = [name.decode() if isinstance(name, bytes) else name for name in steps["phase"][:]]
        copies_s = steps["phase_s"][1:, :, names.index("checkpoint")].max(axis=1)
        step_s = steps["step_s"][1:]
    taken = copies_s[copies_s > 0]
    share = taken.mean() / (50 * np.median(step_s))
    print(
        f"a step {np.median(step_s):.4f} s, a copy {taken.mean():.4f} s ({len(taken)} of them): {share:.2%} of the time"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "ready"])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between kills")
    parser.add_argument("--undisturbed-s", type=float, default=60.0)
    parser.add_argument("--stop", action="store_true", help="SIGSTOP in the place of SIGKILL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("data/digits"))
    parser.add_argument("--job", type=Path, default=Path("jobs/fashion_resnet.toml"))
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (kills if options.what == "kills" else ready)(options, Path(folder))


if __name__ == "__main__":
    main()
