"""A queue of one job: it starts slurm/train.sh, interrupts it as it is told, and brings it back until it is done.

The batch script, mpirun and the training command are the real ones. SLURM's scontrol and sacct are stand-ins, which do
what SLURM would: a requeued script is ended, what a job leaves behind is killed, and the next start counts one restart
more. A rank is ``python -m hpcopt.train``, or the same forked from a warm process.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.interruptions import places

ROOT = Path(__file__).parents[2]
MARK = "HPCOPT_INTERRUPTIONS"
PATIENCE_S = 300.0  # of a start; only one that hangs takes so long
WAIT = f"""\
aim() {{ if [[ ${{HPCOPT_AIM:-}} == $1/* ]]; then echo "$1" > {places.AIM}; read -rN1 < {places.GO}; fi; }}
"""
STAND_INS = {
    "sacct": f"#!/bin/bash\n{WAIT}aim accounting\n",
    "scontrol": f"""#!/bin/bash
{WAIT}case $1 in
    show) echo JobState=RUNNING ;;
    requeue)
        aim requeue
        echo requeued > {places.AIM}
        ;;
esac
""",
}


@dataclass(frozen=True)
class Interruption:
    """What is done to one start of a job.

    Attributes:
        signal: USR1, TERM or KILL.
        target: script, launcher, rank N, half (the upper half of the ranks, as if their host were lost) or all.
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


class Queue:
    """Of one job in a folder of its own, which it prepares."""

    def __init__(self, folder: Path, job: Path, ranks: int, *settings: str) -> None:
        self.folder, self.job, self.ranks, self.settings = folder, job, ranks, settings
        self._mark, self.starts = f"{folder}", list[Start]()
        (folder / "slurm").symlink_to(ROOT / "slurm")
        for kind in ("warm", "cold"):
            (folder / kind).mkdir()
            for name, text in STAND_INS.items():
                _command(folder / kind / name, text)
        client = Path(__file__).with_name("client.py").read_text(encoding="utf-8")
        _command(folder / "warm/python", f"#!{sys.executable} -SEs\n{client}")
        for name in (places.AIM, places.GO):
            os.mkfifo(folder / name)

    def start(self, interruption: Interruption | None = None, *, warm: Path | None) -> Start:
        """Start the script, interrupt it, and wait for its end.

        Args:
            interruption: if any.
            warm: socket of the process that forks the ranks; None: they are started as anybody's.
        """
        self._board = places.open_board(self.folder, self.ranks, new=True)
        start, begin_s = Start(), time.monotonic()
        aim = os.open(self.folder / places.AIM, os.O_RDWR | os.O_NONBLOCK)
        go = os.open(self.folder / places.GO, os.O_RDWR)
        with (self.folder / "said").open("ab") as said:
            script = subprocess.Popen(
                ["bash", "slurm/train.sh", str(self.job), *self.settings],
                cwd=self.folder,
                env=self._environment(interruption, warm),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        ended = os.pidfd_open(script.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(aim, selectors.EVENT_READ)
                selector.register(ended, selectors.EVENT_READ)
                due_s = begin_s + interruption.delay_s if interruption and not interruption.aim else None
                while script.poll() is None and not start.requeued:
                    left_s = begin_s + PATIENCE_S - time.monotonic()
                    if left_s < 0:
                        raise TimeoutError(f"a start in {self.folder} hangs")
                    selector.select(left_s if due_s is None else max(0.0, due_s - time.monotonic() - 2e-3))
                    if due_s is not None and time.monotonic() > due_s - 3e-3:
                        time.sleep(max(0.0, due_s - time.monotonic()))
                        assert interruption is not None
                        start.met, due_s = self._sighted(interruption, script.pid)(), None
                    for place in _read(aim).split():
                        if place == "requeued":
                            start.requeued = True
                            continue
                        assert interruption is not None
                        shoot = self._sighted(interruption, script.pid)
                        os.write(go, b"1")
                        time.sleep(interruption.delay_s)
                        start.met = shoot()
        finally:
            start.left_over = self._end(script)
            start.exit_code, start.took_s = script.returncode, time.monotonic() - begin_s
            for descriptor in (aim, go, ended):
                os.close(descriptor)
            self.starts.append(start)
        return start

    def visits(self) -> dict[str, list[int]]:
        """How often each rank came to each place in the newest start."""
        return {name: self._board[:, 3 + number].tolist() for number, name in enumerate(places.NAMES) if number}

    def _environment(self, interruption: Interruption | None, warm: Path | None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PMI", "HPCOPT", "OMPI"))}
        kind = self.folder / ("cold" if warm is None else "warm")
        return kept | {
            MARK: self._mark,
            "PATH": f"{kind}:{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LAUNCHER": "mpirun",
            "RUN_DIR": "run",
            "SLURM_JOB_ID": "27",
            "SLURM_JOB_NAME": "train",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_TASKS_PER_NODE": str(self.ranks),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_RESTART_COUNT": str(len(self.starts)),
            "MAX_RESTARTS": "99",
            "HPCOPT_WARM": str(warm),
            "HPCOPT_AIM": interruption.aim if interruption else "",
        }

    def _sighted(self, interruption: Interruption, script: int) -> Callable[[], list[str]]:
        """Look for the processes now; give what sends them the signal, and says where they stood."""
        number = getattr(signal, f"SIG{interruption.signal}")
        ranks: Sequence[int]
        match interruption.target.split():
            case ["script"]:
                ranks, pids = range(self.ranks), [script]
            case ["launcher"]:
                ranks, pids = range(self.ranks), [p for p, e in self._processes() if _name(p).startswith("mpirun")]
            case ["rank", rank]:
                ranks, pids = [int(rank)], self._rank_pids([int(rank)])
            case ["half"]:
                ranks = range((self.ranks + 1) // 2, self.ranks)
                pids = self._rank_pids(ranks)
            case _:
                ranks, pids = range(self.ranks), [*self._all()]

        def shoot() -> list[str]:
            if not pids:
                return []
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            return [self._where(rank) for rank in ranks]

        return shoot

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

    def _end(self, script: subprocess.Popen[bytes]) -> int:
        """Kill what is left, as SLURM does at a job's end; how many processes that were beside the script."""
        left_over = {pid for pid in self._all() if pid != script.pid}
        while left := [*self._all()]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            script.poll()
            time.sleep(0.002)
        script.wait()
        return len(left_over)


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
    return environment.get("PMI_RANK", environment.get("OMPI_COMM_WORLD_RANK")) == str(rank)
