"""A queue of one job: it starts slurm/train.sh, interrupts it as it is told, and brings it back until it is done.

The batch script, its launcher and the training command are the real ones. Here, on one host under mpirun, SLURM's
scontrol and sacct are stand-ins, which do what SLURM would: a requeued script is ended, what a job leaves behind is
killed, and the next start counts one restart more. On the development cluster (cluster.py) SLURM is real too. A rank is
``python -m hpcopt.train``, or the same forked from a warm process.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.interruptions import places
from hpcopt.comm.launch import launch_from

ROOT = Path(__file__).parents[2]
MARK = "HPCOPT_INTERRUPTIONS"
PATIENCE_S = 300.0  # of a start; only one that hangs takes so long
LAUNCHERS = ("mpirun", "prterun", "srun")
COMMAND = f"""\
#!/bin/bash
aim() {{ if [[ $(<{places.AIMED}) == $1/* ]]; then echo "$1" > {places.AIM}; read -rN1 < {places.GO}; fi; }}
"""


@dataclass(frozen=True)
class Interruption:
    """What is done to one start of a job.

    Attributes:
        signal: USR1, TERM or KILL.
        target: script, launcher, rank N, half (the upper half of the ranks, as if their host were lost) or all; on the
            cluster also host N and slurmd N (of rank N), scancel (with its options), and requeue, which is no signal.
        delay_s: from the aim to the signal.
        aim: place/rank/visit, or nothing: from the start of the script.
    """

    signal: str
    target: str
    delay_s: float
    aim: str = ""


@dataclass
class Start:
    """What became of one start: exit code of the script, and of an interruption, where the rank stood that it met."""

    exit_code: int | None = None
    requeued: bool = False
    met: list[str] = field(default_factory=list)
    took_s: float = 0.0
    left_over: int = 0


class Queue(ABC):
    """Of one job in a folder of its own, which it prepares."""

    look_s = PATIENCE_S  # how often to see whether a start has ended, where nothing tells

    def __init__(self, folder: Path, job: Path, ranks: int, warm: Path) -> None:
        """Prepare.

        Args:
            folder: empty.
            job: to train.
            ranks: to train on.
            warm: socket of the process that forks the ranks.
        """
        self.folder, self.job, self.ranks, self._warm = folder, job, ranks, warm
        self._mark, self.starts = f"{folder}", list[Start]()
        (folder / "slurm").symlink_to(ROOT / "slurm")
        for kind in ("warm", "cold"):
            (folder / kind).mkdir()
            for name, text in self._commands().items():
                _command(folder / kind / name, f"{COMMAND}{text}")
        client = Path(__file__).with_name("client.py").read_text(encoding="utf-8")
        _command(folder / "warm/python", f"#!{sys.executable} -SEs\n{client}")
        for name in (places.AIM, places.GO):
            os.mkfifo(folder / name)

    @abstractmethod
    def _commands(self) -> dict[str, str]:
        """SLURM's commands that the script meets in the place of the real ones, in bash."""

    @abstractmethod
    def _submit(self) -> None:
        """Have the script run."""

    @abstractmethod
    def _over(self) -> bool:
        """Whether the start has come to its end, or the job is back in the queue."""

    @abstractmethod
    def _script(self) -> int | None:
        """The script's process, if there is one."""

    @abstractmethod
    def _clear(self, start: Start) -> None:
        """End what is left of a start, and note how it ended."""

    def start(self, interruption: Interruption | None = None, *, cold: bool = False) -> Start:
        """Start the script, interrupt it, and wait for its end.

        Args:
            interruption: if any.
            cold: ranks are started as anybody's, not forked from the warm process.
        """
        self._board = places.open_board(self.folder, self.ranks, new=True)
        (self.folder / places.AIMED).write_text(interruption.aim if interruption else "", encoding="utf-8")
        (self.folder / "bin").unlink(missing_ok=True)
        (self.folder / "bin").symlink_to("cold" if cold else "warm")
        self.starts.append(start := Start())
        aim = os.open(self.folder / places.AIM, os.O_RDWR | os.O_NONBLOCK)
        go = os.open(self.folder / places.GO, os.O_RDWR)
        try:
            self._submit()
            self._watch(start, interruption, aim, go)
        finally:
            self._clear(start)
            os.close(aim)
            os.close(go)
        return start

    def _watch(self, start: Start, interruption: Interruption | None, aim: int, go: int) -> None:
        begin_s = time.monotonic()
        due_s = begin_s + interruption.delay_s if interruption and not interruption.aim else None
        with selectors.DefaultSelector() as selector:
            for descriptor in (aim, *self._wakes()):
                selector.register(descriptor, selectors.EVENT_READ)
            while not self._over():
                left_s = begin_s + PATIENCE_S - time.monotonic()
                if left_s < 0:
                    raise TimeoutError(f"a start in {self.folder} hangs")
                wait_s = left_s if due_s is None else max(0.0, due_s - time.monotonic() - 2e-3)
                selector.select(min(wait_s, self.look_s))
                if due_s is not None and time.monotonic() > due_s - 3e-3:
                    time.sleep(max(0.0, due_s - time.monotonic()))
                    assert interruption is not None
                    start.met, due_s = self._sighted(interruption)(), None
                for place in _read(aim).splitlines():
                    if place == "requeued":
                        start.requeued = True
                        continue
                    assert interruption is not None
                    shoot = self._sighted(interruption)
                    os.write(go, b"1")
                    time.sleep(interruption.delay_s)
                    start.met = shoot()
        start.took_s = time.monotonic() - begin_s

    def _wakes(self) -> Sequence[int]:
        """Descriptors that can be read when a start has ended."""
        return ()

    def visits(self) -> dict[str, list[int]]:
        """How often each rank came to each place in the newest start."""
        return {name: self._board[:, 3 + number].tolist() for number, name in enumerate(places.NAMES) if number}

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PMI", "HPCOPT", "OMPI_COMM"))}
        return kept | {
            MARK: self._mark,
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": str(ROOT),
            "VIRTUAL_ENV": str(self.folder),  # whose bin the cluster's site section puts first
            "TMPDIR": str(self.folder),  # where Open MPI leaves what it had when it was killed
            "RUN_DIR": "run",
            "MAX_RESTARTS": "99",
            "HPCOPT_WARM": str(self._warm),
        }

    def _sighted(self, interruption: Interruption) -> Callable[[], list[str]]:
        """Look for the processes now; give what sends them the signal, and says where they stood."""
        number = getattr(signal, f"SIG{interruption.signal}")
        ranks, pids = self._aimed_at(interruption.target)

        def shoot() -> list[str]:
            if not pids:
                return []
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            return [self._where(rank) for rank in ranks]

        return shoot

    def _aimed_at(self, target: str) -> tuple[Sequence[int], list[int]]:
        """The ranks that an interruption meets, and the processes that it is sent to."""
        everybody = range(self.ranks)
        match target.split():
            case ["script"]:
                script = self._script()
                return everybody, [] if script is None else [script]
            case ["launcher"]:
                return everybody, [pid for pid, _ in self._processes() if _name(pid).startswith(LAUNCHERS)]
            case ["rank", rank]:
                return [int(rank)], self._rank_pids([int(rank)])
            case ["half"]:
                upper = range((self.ranks + 1) // 2, self.ranks)
                return upper, self._rank_pids(upper)
            case _:
                return everybody, [*self._all()]

    def _where(self, rank: int) -> str:
        pid, main, other = self._board[rank, :3]
        if not pid:
            return "before Python" if any(_is_rank(e, rank) for _, e in self._processes()) else "before the launch"
        return "+".join(places.NAMES[n] for n in (main, other) if n) or places.NAMES[0]

    def _rank_pids(self, ranks: Sequence[int]) -> list[int]:
        """The ranks' own processes, or those that are about to become them."""
        found = [int(self._board[rank, 0]) for rank in ranks if self._board[rank, 0]]
        waiting = [rank for rank in ranks if not self._board[rank, 0]]
        if waiting:
            found += [p for p, e in self._processes() if any(_is_rank(e, rank) for rank in waiting)]
        return found

    def _processes(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Processes of the job that a launcher or the script has started, with their environment."""
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                text = file.read_bytes()
                if f"{MARK}={self._mark}".encode() in text.split(b"\0"):
                    pairs = (entry.partition("=") for entry in text.decode(errors="replace").split("\0"))
                    yield int(file.parent.name), {name: value for name, _, value in pairs}

    def _all(self) -> Iterator[int]:
        yield from (pid for pid, _ in self._processes())
        yield from (int(pid) for pid in self._board[:, 0] if pid and Path(f"/proc/{pid}").exists())

    def _kill_all(self) -> set[int]:
        """Kill what is left; which processes that were."""
        killed = set[int]()
        while left := {*self._all()}:
            killed |= left
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        return killed


class QueueHere(Queue):
    """On this host, under mpirun, with stand-ins for SLURM's commands."""

    def __init__(self, folder: Path, job: Path, ranks: int, warm: Path) -> None:
        super().__init__(folder, job, ranks, warm)
        version = subprocess.run(["mpirun", "--version"], env=self._environment(), capture_output=True, check=True)
        # The section of the cluster has what Open MPI needs where ranks share cores and are root's.
        self._site = "devcluster" if b"Open MPI" in version.stdout else "none"

    def _commands(self) -> dict[str, str]:
        requeue = f"aim requeue\necho requeued > {places.AIM}"
        return {
            "sacct": "aim accounting\n",
            "scontrol": f"case $1 in\nshow) echo JobState=RUNNING ;;\nrequeue)\n{requeue}\n;;\nesac\n",
        }

    def _submit(self) -> None:
        job = {
            "LAUNCHER": "mpirun",
            "SITE": self._site,
            "SLURM_JOB_ID": "27",
            "SLURM_JOB_NAME": "train",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_TASKS_PER_NODE": str(self.ranks),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_RESTART_COUNT": str(len(self.starts) - 1),
        }
        with (self.folder / "said").open("ab") as said:
            self._process = subprocess.Popen(
                ["bash", "slurm/train.sh", str(self.job)],
                cwd=self.folder,
                env=self._environment() | job,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self._ended = os.pidfd_open(self._process.pid)

    def _wakes(self) -> Sequence[int]:
        return [self._ended]

    def _over(self) -> bool:
        return self._process.poll() is not None or self.starts[-1].requeued

    def _script(self) -> int | None:
        return self._process.pid

    def _clear(self, start: Start) -> None:
        start.left_over = len(self._kill_all() - {self._process.pid})
        start.exit_code = self._process.wait()
        os.close(self._ended)


def _command(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def _read(descriptor: int) -> str:
    try:
        return os.read(descriptor, 4096).decode()
    except BlockingIOError:
        return ""


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    return ""


def _is_rank(environment: dict[str, str], rank: int) -> bool:
    launch = launch_from(environment)
    return launch.launcher in ("mpich", "openmpi") and launch.rank == rank
