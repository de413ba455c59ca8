"""The program of a process of environments: ``python -m hpcopt.workloads.control.server``.

It is told what to make by a line of JSON, then takes orders: one byte, and the numbers that belong to it. Its standard
output carries the answers; what environments print goes to standard error. It ends when its input does.
"""

import json
import os
import sys
from typing import IO

import numpy as np

from hpcopt.errors import HpcoptError
from hpcopt.workloads.control.here import Here, make_environment

RESET, STEP = b"r", b"s"


def taken(pipe: IO[bytes], dtype: type[np.generic], count: int) -> np.ndarray | None:
    """The next numbers of a pipe; None at its end."""
    size = count * np.dtype(dtype).itemsize
    content = pipe.read(size)
    return np.frombuffer(bytearray(content), dtype) if len(content) == size else None


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Do what is asked until nothing more is."""
    told = json.loads(orders.readline())
    made = [make_environment(told["name"], told["arguments"], told["wrappers"]) for _ in range(told["count"])]
    here, actions = Here(made, told["observations"]), told["actions"]
    while order := orders.read(1):
        counted = taken(orders, np.int64, 2)
        if counted is None:
            return
        if order == RESET:
            index, seed = counted.tolist()
            answers.write(here.reset(index, seed).tobytes())
        else:
            first, end = counted.tolist()
            asked = taken(orders, np.float32, (end - first) * actions)
            if asked is None:
                return
            for part in here.step(asked.reshape(-1, actions), range(first, end)):
                answers.write(np.ascontiguousarray(part).tobytes())
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as _answers:
        os.dup2(2, 1)
        try:
            serve(sys.stdin.buffer, _answers)
        except HpcoptError as _error:
            sys.exit(f"hpcopt: in a process of environments: {_error}")
