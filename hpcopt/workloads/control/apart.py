"""Environments in a process of their own, so that a simulator that crashes takes no rank with it.

The process is this module as a program. It is told what to make by a line of JSON, then takes orders: one byte, and the
numbers that belong to it. Its standard output carries the answers, and what environments print goes to standard error.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import numpy as np

from hpcopt.shapes.simulation import Layout
from hpcopt.workloads.control.episodes import LostError
from hpcopt.workloads.control.maker import EnvironmentConfig, Here, Maker

RESET, STEP = b"r", b"s"
END_S = 5.0  # that a process has to end by itself
OF_LAUNCHERS = ("PMI", "PMIX_", "OMPI_", "HYDI", "MPI_", "MPICH_")  # variables that would make it a rank


class Apart:
    """As ``Here``, in a child process.

    Attributes:
        process: the child.
    """

    def __init__(self, config: EnvironmentConfig, layout: Layout, count: int) -> None:
        self._layout, self._count = layout, count
        kept = {name: text for name, text in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
        kept["PYTHONPATH"] = os.pathsep.join([path or os.curdir for path in sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept
        )
        self._ask(json.dumps({"config": config.model_dump(mode="json"), "count": count}).encode() + b"\n")

    def reset(self, index: int, seed: int) -> np.ndarray:
        self._ask(RESET + np.array([index, seed], np.int64).tobytes())
        return self._answer(np.float32, self._layout.observations)

    def step(self, actions: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(indices)
        chosen = np.array([count, *indices], np.int64)
        self._ask(STEP + chosen.tobytes() + np.ascontiguousarray(actions, np.float32).tobytes())
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


def taken(pipe: IO[bytes], dtype: type[np.generic], count: int) -> np.ndarray | None:
    """The next numbers of a pipe; None at its end."""
    size = count * np.dtype(dtype).itemsize
    content = pipe.read(size)
    return np.frombuffer(bytearray(content), dtype) if len(content) == size else None


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Do what is asked until nothing more is."""
    told = json.loads(orders.readline())
    maker = Maker(EnvironmentConfig.model_validate(told["config"]))
    here, actions = Here(maker, told["count"]), maker.layout.actions
    while order := orders.read(1):
        if order == RESET:
            chosen = taken(orders, np.int64, 2)
            if chosen is None:
                return
            answers.write(here.reset(int(chosen[0]), int(chosen[1])).tobytes())
        else:
            counted = taken(orders, np.int64, 1)
            if counted is None:
                return
            indices, asked = taken(orders, np.int64, int(counted[0])), taken(orders, np.float32, counted[0] * actions)
            if indices is None or asked is None:
                return
            for part in here.step(asked.reshape(-1, actions), indices.tolist()):
                answers.write(np.ascontiguousarray(part).tobytes())
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as _answers:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, _answers)
