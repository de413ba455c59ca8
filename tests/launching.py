"""Jobs of several ranks that a test starts. They end with the test, whatever happens."""

import atexit
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from uuid import uuid4

from benchmarks.interruptions import client
from benchmarks.interruptions.warm import warm_process

ROOT = Path(__file__).parents[1]
PATIENCE_S = 500  # for what should come by itself under any load; only what hangs takes so long
MARK = "HPCOPT_TEST_JOB"


def forking() -> ForkServerContext:
    """Of processes forked from one that has imported everything and has not started MPI.

    A test process has one such server, whichever test comes first: all ask for the same one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.elastic.dying"])
    return context


@functools.cache
def warm() -> str:
    """Where clients find the process that forks ranks, which runs as long as this one: it has imported what most jobs
    need, and MPI too, but has not started it.
    """
    needs = [
        *("hpcopt.train", "hpcopt.training", "hpcopt.session", "hpcopt.exchange", "hpcopt.compress", "hpcopt.comm.mpi"),
        *("hpcopt.workloads.image_classification", "hpcopt.models.mlp", "hpcopt.solvers.data_parallel"),
    ]
    open_to_the_end = ExitStack()
    atexit.register(open_to_the_end.close)
    return str(open_to_the_end.enter_context(warm_process([], needs)))


class Job(subprocess.Popen[str]):
    """``mpirun`` of a Python program. Standard error is a pipe; standard output goes into a file, so that a rank may
    print what nobody reads.
    """

    def __init__(self, ranks: int, *arguments: str, forked: bool = True, **environment: str) -> None:
        """Start.

        Args:
            ranks: how many.
            arguments: Python's.
            forked: from a process that has imported everything; a client stands for each, and passes on USR1, TERM, INT
                and KILL.
            environment: beside this process's.
        """
        self._mark, self._out = uuid4().hex, tempfile.TemporaryFile("w+")  # noqa: SIM115
        python = [sys.executable]
        if forked:
            python, environment = [*python, "-SEs", client.__file__], {**environment, "HPCOPT_WARM": warm()}
        super().__init__(
            [str(Path(sys.executable).with_name("mpirun")), "-n", str(ranks), *python, *arguments],
            stdout=self._out,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment, MARK: self._mark},
            start_new_session=True,
        )

    @property
    def out(self) -> str:
        """What it has printed."""
        self._out.seek(0)
        return self._out.read()

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Return when something has come about; fail if the job ends before."""
        while not event():
            assert self.poll() is None, f"the job ended: {self.communicate()[1]}"
            time.sleep(0.02)

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
def started(ranks: int, *arguments: str, forked: bool = True, **environment: str) -> Iterator[Job]:
    """A job that runs while the body does, or for a shorter time, and never longer than ``PATIENCE_S``."""
    job = Job(ranks, *arguments, forked=forked, **environment)
    patience = threading.Timer(PATIENCE_S, job.end)
    patience.start()
    try:
        yield job
    finally:
        patience.cancel()
        job.end()
        job.stderr.close()


def mpirun(ranks: int, *arguments: str, forked: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    with started(ranks, *arguments, forked=forked, **environment) as job:
        error = job.communicate()[1]
        return subprocess.CompletedProcess(job.args, job.returncode, job.out, error)
