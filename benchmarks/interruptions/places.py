"""Where a rank is: the functions that it may be interrupted in note that they have begun, and how often.

A board, a file that the queue makes for each start, has a row a rank: its process, the place of its main thread, that
of any other, and the visits of each place. Where the queue has asked for it (a file), the rank says that a visit
begins and waits for the queue's word, so that an interruption can be aimed at microseconds from there.
"""

import functools
import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.comm.launch import launch_from

# What a rank does, in the order of a run: a place, and the functions that are it.
PLACES = {
    "MPI_Init": ["benchmarks.interruptions.places:start_mpi"],
    "run directory": ["hpcopt.training:open_directory"],
    "build": ["hpcopt.training:build"],
    "resume": ["hpcopt.trainer.services:Services.resume"],
    "metrics opened": ["hpcopt.trainer.services:Services.record"],
    "backward": ["torch:Tensor.backward"],
    "collective": ["hpcopt.comm.mpi:MpiTransport.all_reduce", "hpcopt.comm.mpi:MpiTransport.all_gather"],
    "checkpoint begun": ["hpcopt.store.checkpoint:Checkpoints.begin"],
    "checkpoint written": ["hpcopt.store.checkpoint:Checkpoints.write_part"],
    "checkpoint commit": ["hpcopt.store.checkpoint:Checkpoints.commit"],
    "evaluation": ["hpcopt.trainer.loop:evaluate"],
    "metrics write": [
        "hpcopt.store.metrics:MetricsFile.append_steps",
        "hpcopt.store.metrics:MetricsFile.append_evaluation",
    ],
    "end": ["hpcopt.trainer.housekeeping:Housekeeping.finish"],
    "MPI_Finalize": ["mpi4py.MPI:Finalize"],
}
OF_SCRIPT = ("accounting", "requeue")  # of the batch script, after its ranks
NAMES = ("elsewhere", *PLACES)
BOARD, AIMED, AIM, GO = "board", "aimed", "aim", "go"  # files of a start
COLUMNS = 3 + len(NAMES)


def open_board(folder: Path, ranks: int, *, new: bool = False) -> np.memmap:
    """The board of a start, (ranks, COLUMNS)."""
    return np.memmap(folder / BOARD, np.int32, "w+" if new else "r+", shape=(ranks, COLUMNS))


def start_mpi(mpi: Any) -> None:
    """Start MPI, which is loaded, as its import does."""
    import mpi4py

    if mpi4py.rc.initialize and not mpi.Is_initialized():
        mpi.Init_thread(getattr(mpi, f"THREAD_{mpi4py.rc.thread_level.upper()}"))


def note_places() -> None:
    """Have this rank note where it is."""
    launch = launch_from()
    rank, row = launch.rank, open_board(Path(), launch.size)[launch.rank]
    row[0] = os.getpid()
    aim = Path(AIMED).read_text(encoding="utf-8").split("/")  # place, rank, visit
    for place, functions in PLACES.items():
        visit = int(aim[2]) if aim[:2] == [place, str(rank)] else 0
        for function in functions:
            _replace(function, functools.partial(_noting, row, NAMES.index(place), visit))


def _replace(function: str, by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, by(getattr(owner, name)))


def _noting(row: np.ndarray, number: int, aimed: int, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noted(*arguments: Any, **named: Any) -> Any:
        column = 1 if threading.current_thread() is threading.main_thread() else 2
        before, row[column] = row[column], number
        row[3 + number] += 1
        if row[3 + number] == aimed:
            wait_for_word(NAMES[number])
        try:
            return function(*arguments, **named)
        finally:
            row[column] = before

    return noted


def wait_for_word(place: str) -> None:
    """Tell the queue that the aim is reached; go on when it says so."""
    with Path(AIM).open("w", encoding="utf-8") as aim:
        aim.write(f"{place}\n")
    with Path(GO).open("rb", buffering=0) as go:
        go.read(1)
