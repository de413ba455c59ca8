"""The queue of the development cluster (slurm/devcluster): its sbatch, srun and hosts are real, and hosts can be lost.

A lost host is all its processes killed at once, slurmd, slurmstepd and ranks; it comes back after the start that it
was taken from. A job that SLURM has put back into the queue goes on there; one that ended is submitted again.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.interruptions.queue import PATIENCE_S, ROOT, Interruption, Queue, Start
from slurm.devcluster import daemons, network

WAITING, RUNNING = {"PENDING"}, {"CONFIGURING", "RUNNING"}
SOONEST_S = 3  # that a job may come back: sooner, hosts refuse its old number


class ClusterQueue(Queue):
    """On two or three hosts."""

    look_s = 0.2

    def __init__(self, folder: Path, job: Path, ranks: int, warm: Path) -> None:
        super().__init__(folder, job, ranks, warm)
        self._hosts = 2 if ranks % 2 == 0 else ranks
        self._id, self._harmed, self._begun_again = "", False, 0

    def _commands(self) -> dict[str, str]:
        def real(name: str) -> str:
            return f'exec {shutil.which(name)} "$@"\n'

        return {
            "sacct": f"aim accounting\n{real('sacct')}",
            "scontrol": f"if [[ $1 == requeue ]]; then aim requeue; fi\n{real('scontrol')}",
        }

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"SLURM_CONF": str(daemons.CONFIG), "LAUNCHER": "srun"}

    def _submit(self) -> None:
        """Submit the job, unless it is in the queue already, and wait until it runs."""
        if not self._id or self._state() not in WAITING:
            said = ("--output=said", "--open-mode=append", f"--chdir={self.folder}", "--time=10")
            where = (f"--nodes={self._hosts}", f"--ntasks-per-node={self.ranks // self._hosts}")
            command = ["sbatch", "--parsable", *said, *where, "slurm/train.sh", str(self.job)]
            done = subprocess.run(
                command, cwd=ROOT, env=self._environment(), check=True, capture_output=True, text=True, timeout=60
            )
            self._id, self._begun_again = done.stdout.strip(), 0
        patience_s = time.monotonic() + PATIENCE_S
        while (state := self._state()) in WAITING:
            if time.monotonic() > patience_s:
                raise TimeoutError(f"job {self._id} does not start: {self._field('Reason')}")
            if self._field("Reason") == "BeginTime" and (restarts := int(self._field("Restarts"))) > self._begun_again:
                self._begun_again = restarts
                daemons.slurm("scontrol", "update", f"JobId={self._id}", f"StartTime=now+{SOONEST_S}")
            time.sleep(self.look_s)
        self._nodes = daemons.slurm("scontrol", "show", "hostnames", self._field("NodeList")).split()
        assert state, self._id

    def _over(self) -> bool:
        return self._state() not in RUNNING

    def _script(self) -> int | None:
        scripts = [pid for pid, _ in self._processes() if _command_line(pid).endswith("slurm_script")]
        return min(scripts, default=None)  # a shell that it has forked, to start the launcher, has its name

    def _clear(self, start: Start) -> None:
        if self._harmed:
            subprocess.run([sys.executable, "-m", "slurm.devcluster", "up"], cwd=ROOT, check=True, capture_output=True)
            self._harmed = False
        patience_s = time.monotonic() + PATIENCE_S
        while self._state() in RUNNING | {"COMPLETING"} and time.monotonic() < patience_s:
            time.sleep(self.look_s)
        start.requeued = self._state() in WAITING
        code, number = map(int, self._field("ExitCode").split(":"))
        start.exit_code = None if start.requeued else -number if number else code
        start.left_over = len(self._kill_all())

    def _sighted(self, interruption: Interruption) -> Callable[[], list[str]]:
        match interruption.target.split():
            case ["requeue"]:
                command = ("scontrol", "requeue", self._id)
            case ["scancel", *options]:
                command = ("scancel", f"--signal={interruption.signal}", *options, self._id)
            case _:
                return super()._sighted(interruption)

        def ask() -> list[str]:
            daemons.slurm(*command)
            return [self._where(rank) for rank in range(self.ranks)]

        return ask

    def _aimed_at(self, target: str) -> tuple[Sequence[int], list[int]]:
        match target.split():
            case ["host", rank]:
                host, here = self._host_of(int(rank))
                self._harmed = True
                return here, network.processes(network.PREFIX + host)
            case ["slurmd", rank]:
                host, here = self._host_of(int(rank))
                self._harmed = True
                return here, daemons.slurmd_of(host)[0]
            case _:
                return super()._aimed_at(target)

    def _host_of(self, rank: int) -> tuple[str, list[int]]:
        """The host of a rank, and all ranks there."""
        each = self.ranks // self._hosts
        number = rank // each
        return self._nodes[number], [*range(number * each, (number + 1) * each)]

    def _state(self) -> str:
        return self._field("JobState")

    def _field(self, name: str) -> str:
        shown = daemons.slurm("scontrol", "show", "job", "--oneliner", self._id)
        found = re.search(rf"\b{name}=(\S*)", shown)
        assert found, shown
        return found[1]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")[1]
    except (OSError, IndexError):
        return ""
