"""The program of a process of environments: ``python -m hpcopt.workloads.control.server``.

It is told what to make by a line of JSON, then takes orders: one byte, and the numbers that belong to it. Its standard
output carries the answers, to the line, too: one byte, DONE, and numbers; or FAILED, and what failed, in words, which
is the last. What environments print goes to standard error. It ends when its input does.
"""

import json
import os
import sys
from typing import IO

import numpy as np

from hpcopt.errors import HpcoptError
from hpcopt.workloads.control.here import Here, make_environment

RESET, STEP = b"r", b"s"
DONE, FAILED = b".", b"!"


def taken(pipe: IO[bytes], dtype: type[np.generic], count: int) -> np.ndarray | None:
    """The next numbers of a pipe; None at its end."""
    size = count * np.dtype(dtype).itemsize
    content = pipe.read(size)
    return np.frombuffer(bytearray(content), dtype) if len(content) == size else None


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Do what is asked until nothing more is."""
    told = json.loads(orders.readline())
    made = [make_environment(told["name"], told["arguments"], told["wrappers"]) for _ in range(told["count"])]
    here, actions = Here(made, told["observations"], told["max_episode_steps"]), told["actions"]
    answers.write(DONE)
    answers.flush()
    while order := orders.read(1):
        if order == RESET:
            place = taken(orders, np.int64, 2)
            if place is None:
                return
            parts = [here.reset(*place.tolist())]
        else:
            count = taken(orders, np.int64, 1)
            indices = None if count is None else taken(orders, np.int64, int(count[0]))
            asked = None if indices is None else taken(orders, np.float32, len(indices) * actions)
            if indices is None or asked is None:
                return
            parts = [*here.step(asked.reshape(-1, actions), indices.tolist())]
        answers.write(DONE + b"".join(part.tobytes() for part in parts))
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as _answers:
        os.dup2(2, 1)
        try:
            serve(sys.stdin.buffer, _answers)
        except HpcoptError as _error:
            _answers.write(FAILED + str(_error).encode())
            sys.exit(_error.exit_code)
