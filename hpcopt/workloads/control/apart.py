"""Environments in a process of their own, so that a simulator that crashes takes no rank with it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from hpcopt.workloads.control.episodes import LostError
from hpcopt.workloads.control.maker import Maker
from hpcopt.workloads.control.server import RESET, STEP, taken

END_S = 5.0  # that a process has to end by itself
OF_LAUNCHERS = ("PMI", "PMIX_", "OMPI_", "HYDI", "MPI_", "MPICH_")  # variables that would make it a rank


class Apart:
    """As ``hpcopt.workloads.control.here.Here``, in a child process.

    Attributes:
        process: the child.
    """

    def __init__(self, maker: Maker, count: int) -> None:
        self._layout = maker.layout
        told = {"name": maker.name, "arguments": maker.arguments, "wrappers": maker.wrappers, "count": count}
        numbers = {"observations": maker.layout.observations, "actions": maker.layout.actions}
        kept = {name: text for name, text in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
        kept["PYTHONPATH"] = os.pathsep.join([path or os.curdir for path in sys.path])
        program = [sys.executable, "-m", "hpcopt.workloads.control.server"]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept)
        self._ask(json.dumps({**told, **numbers}).encode() + b"\n")

    def reset(self, index: int, seed: int) -> np.ndarray:
        self._ask(RESET + np.array([index, seed], np.int64).tobytes())
        return self._answer(np.float32, self._layout.observations)

    def step(self, actions: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``indices`` are one behind the other."""
        count = len(indices)
        ends = np.array([indices[0], indices[0] + count], np.int64)
        self._ask(STEP + ends.tobytes() + np.ascontiguousarray(actions, np.float32).tobytes())
        observed = self._answer(np.float32, count * self._layout.observations).reshape(count, -1)
        rewards = self._answer(np.float64, count)
        return observed, rewards, self._answer(np.bool_, 2 * count).reshape(count, 2)

    def close(self) -> None:
        process = self.process
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _ask(self, order: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(order)
            self.process.stdin.flush()
        except OSError as cause:
            raise self._gone() from cause

    def _answer(self, dtype: type[np.generic], count: int) -> np.ndarray:
        assert self.process.stdout is not None
        found = taken(self.process.stdout, dtype, count)
        if found is None:
            raise self._gone()
        return found

    def _gone(self) -> LostError:
        return LostError(f"exit code {self.process.wait()}")
