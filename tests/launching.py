"""Jobs of several ranks that a test starts. They end with the test, whatever happens."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).parents[1]
PATIENCE_S = 900  # for what should come by itself under any load; only what hangs takes so long
MARK = "HPCOPT_TEST_JOB"


class Job(subprocess.Popen[str]):
    """``mpirun`` of a Python program."""

    def __init__(self, ranks: int, *arguments: str, **environment: str) -> None:
        """Start; ``arguments`` are Python's."""
        self._mark = uuid4().hex
        super().__init__(
            [str(Path(sys.executable).with_name("mpirun")), "-n", str(ranks), sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment, MARK: self._mark},
            start_new_session=True,
        )

    def rank_pids(self) -> dict[int, int]:
        """Process of each rank that is there."""
        found = {}
        for pid, environment in self._processes().items():
            rank = environment.get("OMPI_COMM_WORLD_RANK", environment.get("PMI_RANK"))
            if rank is not None:
                found.setdefault(int(rank), pid)
        return found

    def end(self) -> None:
        """Kill what is left of it, also ranks that mpirun has lost."""
        while left := self._processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait()

    def _processes(self) -> dict[int, dict[str, str]]:
        found = {}
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                pairs = (entry.partition("=") for entry in file.read_bytes().decode(errors="replace").split("\0"))
                environment = {name: value for name, _, value in pairs}
                if environment.get(MARK) == self._mark:
                    found[int(file.parent.name)] = environment
        return dict(sorted(found.items()))


@contextmanager
def started(ranks: int, *arguments: str, **environment: str) -> Iterator[Job]:
    """A job that runs while the body does, or for a shorter time."""
    job = Job(ranks, *arguments, **environment)
    try:
        yield job
    finally:
        job.end()
        job.communicate()


def mpirun(ranks: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    with started(ranks, *arguments, **environment) as job:
        out, error = job.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(job.args, job.returncode, out, error)
