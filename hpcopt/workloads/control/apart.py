"""Environments in a process of their own, so that a simulator that crashes takes no rank with it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from hpcopt.workloads.control.maker import Maker
from hpcopt.workloads.control.server import DONE, FAILED, RESET, STEP, taken
from hpcopt.workloads.control.simulator import LostError

END_S = 5.0  # that a process has to end by itself
OF_LAUNCHERS = ("PMI", "PMIX_", "OMPI_", "HYDI", "MPI_", "MPICH_")  # variables that would make it a rank


class Apart:
    """As ``hpcopt.workloads.control.here.Here``, in a child process.

    Attributes:
        process: the child.
    """

    def __init__(self, maker: Maker, count: int) -> None:
        """Start it and wait until they are made. LostError: it is gone before."""
        self._layout = maker.layout
        told = {"name": maker.name, "arguments": maker.arguments, "wrappers": maker.wrappers, "count": count}
        numbers = {
            "observations": maker.layout.observations,
            "actions": maker.layout.actions,
            "max_episode_steps": maker.max_episode_steps,
        }
        kept = {name: text for name, text in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
        kept["PYTHONPATH"] = os.pathsep.join([path or os.curdir for path in sys.path])
        program = [sys.executable, "-m", "hpcopt.workloads.control.server"]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept)
        self._ask(json.dumps({**told, **numbers}).encode() + b"\n")

    def reset(self, index: int, seed: int) -> np.ndarray:
        self._ask(RESET + np.array([index, seed], np.int64).tobytes())
        return self._answer(np.float32, self._layout.observations)

    def step(self, actions: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(indices)
        head = np.array([count, *indices], np.int64)
        self._ask(STEP + head.tobytes() + np.ascontiguousarray(actions, np.float32).tobytes())
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
        """Give an order, and wait until it is done."""
        orders, answers = self.process.stdin, self.process.stdout
        assert orders is not None and answers is not None
        with suppress(OSError):  # it is gone: it may have said why
            orders.write(order)
            orders.flush()
        mark = answers.read(1)
        if mark == FAILED:
            raise LostError(answers.read().decode(errors="replace"))
        if mark != DONE:
            raise self._gone()

    def _answer(self, dtype: type[np.generic], count: int) -> np.ndarray:
        assert self.process.stdout is not None
        found = taken(self.process.stdout, dtype, count)
        if found is None:
            raise self._gone()
        return found

    def _gone(self) -> LostError:
        code = self.process.wait()
        return LostError(f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}")
