"""Data sets read by processes of their own.

A process is started afresh and opens the data set by its name. It is never a fork of this one: a fork after MPI has
started shares the network's state with its parent, and either may then hang or corrupt what the other sends.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hpcopt.errors import DataError, HpcoptError
from hpcopt.workloads.own.samples import Indexed, Origin
from hpcopt.workloads.own.stream import Stream

_LAUNCHER = ("PMI", "OMPI_", "PRTE_", "HYDRA_", "MPI_LOCAL", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")


class _Failed(NamedTuple):
    message: str


class ReaderProcess:
    """A process that has a data set open. It ends with this one, or when nobody refers to this object any more."""

    def __init__(self, origin: Origin, kind: type[Indexed] | type[Stream]) -> None:
        """Start it; it opens ``kind(origin)`` when it is first asked."""
        self._origin, self._turn = origin, threading.Lock()
        folders = [folder or str(Path.cwd()) for folder in sys.path]
        own = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**own, "PYTHONPATH": os.pathsep.join(folders)},
        )
        self._send((origin, kind))

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method gives there.

        Raises:
            DataError: what it raised there, or the process has ended.
        """
        with self._turn:
            self._send((method, arguments))
            try:
                answer = pickle.load(self._process.stdout)  # type: ignore[arg-type]
            except (EOFError, pickle.UnpicklingError):
                code = self._process.wait()
                raise DataError(
                    f"{self._origin}: a process that reads it ended with exit code {code}"
                    + (": killed, perhaps for its memory" if code == -signal.SIGKILL else "; what it said stands above")
                ) from None
        if isinstance(answer, _Failed):
            raise DataError(answer.message)
        return answer

    def _send(self, what: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(what, self._process.stdin, protocol=5)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: told when its answer is read

    def __del__(self) -> None:
        if (process := getattr(self, "_process", None)) is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        process.kill()
        process.wait()


def main() -> None:
    """Answer requests until there is nobody to ask: what such a process does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the rank, with which this process ends
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the data set prints is no answer
    torch.set_num_threads(1)
    opened: Any = None
    try:
        origin, kind = pickle.load(sys.stdin.buffer)
        while True:
            method, arguments = pickle.load(sys.stdin.buffer)
            try:
                opened = opened or kind(origin)
                answer = getattr(opened, method)(*arguments)
            except HpcoptError as error:
                answer = _Failed(str(error))
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)


if __name__ == "__main__":
    from hpcopt.workloads.own import readers  # the module that the other side knows, not __main__

    readers.main()
