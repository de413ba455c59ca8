"""A run whose ranks are killed again and again, beside one that is left alone; and what being ready for it costs.

    python benchmarks/elastic.py kills --ranks 4 --minutes 4 --every 15     goodput, and how soon the next step comes
    python benchmarks/elastic.py again FOLDER     the same bits again, and the loss without disturbance
    python benchmarks/elastic.py ready --ranks 2 --job jobs/fashion_resnet.toml     share of the time that copies take

``kills`` lets a job run for a minute undisturbed, then disturbs a random rank every so many seconds: ``--by kill`` by
SIGKILL, ``stop`` by SIGSTOP, ``link`` by cutting its host of the development cluster off for ``--cut-s`` seconds (as
root). It prints steps kept a second beside those of the undisturbed minute, and beside those of the last seconds before
each disturbance. Ranks come back as they will. On the development cluster's hosts, whose job SLURM starts:

    python benchmarks/elastic.py kills --launch "srun -N 4 -n 4 --no-kill --kill-on-bad-exit=0" ...

``again`` repeats a disturbed run by its recorded membership: the parameters must have the same bits.
"""

import argparse
import hashlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from hpcopt.config import Config
from hpcopt.elastic.membership import Membership
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.gossip import GossipConfig
from hpcopt.solvers.local.solver import LocalConfig
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
notes = "{notes}"
{method}
"""
ADAMW = 'optimizer = {name = "adamw", lr = 0.0005}'
METHODS = {
    "sums": f'name = "benchmarks.elastic:NotedConfig"\nshard_optimizer = true\n{ADAMW}',
    "votes": 'name = "benchmarks.elastic:NotedConfig"\noptimizer = {name = "signum", lr = 0.0005, momentum = 0.9}\n'
    '[exchange]\nname = "vote"',
    "local": f'name = "benchmarks.elastic:NotedLocalConfig"\nevery = 10\n{ADAMW}',
    "gossip": f'name = "benchmarks.elastic:NotedGossipConfig"\n{ADAMW}',
}


class Noted(Config):
    """Of a solver that notes when it was built, and when it has done a step.

    Attributes:
        notes: folder, of a file a process, which is named after its number and its host.
    """

    notes: Path

    def build(self, task: Any, context: Any) -> Any:
        """Make the solver. Collective."""
        solver = super().build(task, context)
        step = solver.step
        notes = (self.notes / f"{os.getpid()}.{socket.gethostname()}").open("a", encoding="utf-8", buffering=1)
        notes.write(f"{time.time()} built\n")

        def noted_step(batch: Any) -> Any:
            stats = step(batch)
            notes.write(f"{time.time()} {solver._step}\n")
            return stats

        solver.step = noted_step
        return solver


class NotedConfig(Noted, DataParallelConfig):
    """Data parallelism: sums, or votes."""


class NotedLocalConfig(Noted, LocalConfig):
    """Local steps."""


class NotedGossipConfig(Noted, GossipConfig):
    """Gossip."""


def launched(launch: str, job: Path, run_dir: Path, *settings: str) -> subprocess.Popen[bytes]:
    """Start a job."""
    options = [option for setting in settings for option in ("--set", setting)]
    command = [*shlex.split(launch), sys.executable, "-m", "hpcopt.train", str(job), "--run-dir", str(run_dir)]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, start_new_session=True)


def ranks_of(notes: Path) -> list[tuple[int, str]]:
    """Processes that have taken a step and are there, and their hosts."""
    stepped = [file.name for file in notes.iterdir() if file.read_text(encoding="utf-8").count("\n") > 1]
    named = [(int(pid), host) for pid, host in (name.split(".", 1) for name in stepped)]
    return sorted((pid, host) for pid, host in named if Path(f"/proc/{pid}").exists())


def disturb(by: str, pid: int, host: str, cut_s: float) -> None:
    """Kill or stop a process, or cut its host off for a while."""
    if by == "link":
        for state, pause_s in (("down", cut_s), ("up", 0.0)):
            subprocess.run(["ip", "link", "set", f"hpcopt-{host}", state], check=True)
            time.sleep(pause_s)
    else:
        os.kill(pid, signal.SIGSTOP if by == "stop" else signal.SIGKILL)


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
    """Disturb a run."""
    draw, notes, job = random.Random(options.seed), folder / "notes", folder / "job.toml"
    notes.mkdir(parents=True)
    text = JOB.format(data=options.data.absolute(), notes=notes.absolute(), method=METHODS[options.method])
    job.write_text(text, encoding="utf-8")
    process = launched(options.launch, job, folder / "run", *options.settings)
    while len(ranks_of(notes)) < options.ranks:
        time.sleep(0.1)
    begin_s = time.time()
    time.sleep(options.undisturbed_s)
    calm_s = time.time()
    disturbed_s = []
    while time.time() < calm_s + 60 * options.minutes:
        disturbed_s.append(time.time())
        disturb(options.by, *draw.choice(ranks_of(notes)), options.cut_s)
        time.sleep(max(0.0, disturbed_s[-1] + options.every - time.time()))
    end_s = time.time()
    process.send_signal(signal.SIGUSR1)
    process.wait()
    built, steps = notes_in(notes)

    def reached(second: float) -> int:
        """The last step that was done by then."""
        return [step for when, step in steps if when <= second][-1]

    def rate(begin_s: float, end_s: float) -> float:
        """Steps kept a second."""
        return (reached(end_s) - reached(begin_s)) / (end_s - begin_s)

    calm, disturbed = rate(begin_s, calm_s), rate(calm_s, end_s)
    between = median(rate(one - options.every / 2, one) for one in disturbed_s[1:])
    back = [seconds for one in disturbed_s if (seconds := back_after(one, built, steps)) is not None]
    times = f"{len(disturbed_s)} times ({options.by})"
    print(f"undisturbed: {calm:.2f} steps/s; disturbed {times}: {disturbed:.2f}; goodput {disturbed / calm:.3f}")
    print(f"just before each disturbance: {between:.2f} steps/s; goodput {disturbed / between:.3f}")
    print(f"until the next step: median {median(back):.2f} s, longest {max(back):.2f} s")
    last, membership = last_step(folder / "run"), Membership.of(folder / "run").starts
    with h5py.File(folder / "run" / "metrics.h5") as file:
        whole = np.array_equal(file["steps/step"][:], np.arange(1, last + 1))
    print(f"{last} steps, in ranks from step to step: {membership}; one row each: {whole}; {tail_loss(folder / 'run')}")


def again(options: argparse.Namespace, folder: Path) -> None:
    """Repeat a disturbed run by its recorded membership, and without disturbance by all ranks."""
    last = last_step(folder / "run")
    for name, membership in (("again", [f"run.membership={folder / 'run'}"]), ("calm", [])):
        settings = [f"run.steps={last}", *membership, *options.settings]
        process = launched(options.launch, folder / "job.toml", folder / name, *settings)
        process.wait()
    print(f"repeated by its membership: same bits {digest(folder / 'again', last) == digest(folder / 'run', last)}")
    print(f"undisturbed, the same steps: {tail_loss(folder / 'calm')}; disturbed: {tail_loss(folder / 'run')}")


def last_step(run_dir: Path) -> int:
    """Of the newest checkpoint."""
    return Checkpoints(run_dir / "checkpoints", keep=2).steps()[0]


def tail_loss(run_dir: Path) -> str:
    """At the end."""
    with h5py.File(run_dir / "metrics.h5") as file:
        return f"loss of the last 100 {file['steps/loss'][-100:].mean():.4f}"


def ready(options: argparse.Namespace, folder: Path) -> None:
    """What copies take of a job's time, in a run that nobody disturbs."""
    settings = [f"run.steps={options.steps}", "run.elastic=true", "run.copy_every=50", "run.checkpoint_every=1000000"]
    launched(options.launch, options.job, folder / "run", *settings).wait()
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
    parser.add_argument("what", choices=["kills", "again", "ready"])
    parser.add_argument("folder", type=Path, nargs="?", help="of runs; by default a temporary one, of kills and ready")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--method", choices=METHODS, default="sums", help="of kills: how ranks train together")
    parser.add_argument("--launch", help="what starts the ranks; by default mpirun")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--every", type=float, default=15.0, help="seconds from one disturbance to the next")
    parser.add_argument("--undisturbed-s", type=float, default=60.0)
    parser.add_argument("--by", choices=["kill", "stop", "link"], default="kill")
    parser.add_argument("--cut-s", type=float, default=4.0, help="that a link is cut")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of the job of kills and again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("data/digits"))
    parser.add_argument("--job", type=Path, default=Path("jobs/fashion_resnet.toml"))
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    options.launch = options.launch or f"mpirun -n {options.ranks}"
    what = {"kills": kills, "again": again, "ready": ready}[options.what]
    if options.folder is not None:
        what(options, options.folder.absolute())
    elif what is again:
        parser.error("again needs the folder that kills has filled")
    else:
        with tempfile.TemporaryDirectory() as folder:
            what(options, Path(folder))


if __name__ == "__main__":
    main()
