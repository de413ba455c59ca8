"""Every rank's numbers of every step, on their way into rank 0's metrics.h5.

Steps are buffered and gathered in blocks, so that a step itself pays for no file and no message. Nothing is written by
two ranks.
"""

import math
import resource
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
import torch

from hpcopt.comm.device import peak_bytes as device_peak_bytes
from hpcopt.comm.world import World
from hpcopt.errors import MetricsError
from hpcopt.phases import Lap, PhaseClock
from hpcopt.shapes.stats import Columns, StepStats, Table
from hpcopt.shapes.workload import Better
from hpcopt.store import step_times
from hpcopt.store.metrics import BY_RANK, OWN_TABLES, MetricsFile
from hpcopt.store.tables import usable
from hpcopt.trainer.energy import Energy
from hpcopt.trainer.scalars import Scalars

SHARED = ("step", "epoch", "time_s", "step_s", "learning_rate", "samples")  # columns that are the same on all ranks
ENERGY = "energy_j"  # at the last step of each block, since the block before it
OURS = (*SHARED, "loss", ENERGY, *BY_RANK)  # tables of the steps
LATEST = 16  # steps whose seconds are at hand
CPU = torch.device("cpu")
BLOCK_STEPS = 512  # for 128 ranks, an append then costs .05 ms of processor time a step; one of 64 steps .17 ms


class Recorder:
    """Buffers steps and flushes them. All methods are called on all ranks at the same steps; ``flush`` and what calls
    it are collective.
    """

    def __init__(
        self,
        world: World,
        file: MetricsFile,
        clock: PhaseClock,
        elapsed_s: float,
        energy: Energy | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Start counting; ``elapsed_s`` are the seconds that earlier parts of the run took, and ``energy`` counts."""
        self._world, self._file, self._clock, self._energy, self._device = world, file, clock, energy, device
        self._shared: list[tuple[float | None, ...]] = []  # of SHARED: a row a step
        self._mine: list[tuple[Lap, int, int]] = []  # phases, bytes sent, bytes dense: a row a step
        self._before = Lap(dict.fromkeys(clock.phases, 0.0), None, ())
        self._start_s = time.monotonic() - elapsed_s
        self._last_step_s = self._last_flush_s = time.monotonic()
        self._loss: tuple[int, SupportsFloat | None] | None = None  # of the newest row, which a GPU may still compute
        self._scalars = Scalars(name for name in OURS if name != "loss")
        self._lasting: dict[str, tuple[int, Table]] = {}  # and the step before the first that it came with
        self._rows: dict[str, list[tuple[int, Table]]] = {}  # and the step that it came with
        self._rescaled = 1.0
        self.step_times_s: deque[float] = deque(maxlen=LATEST)
        self.ended_s = elapsed_s
        self._training: list[
            np.ndarray
        ] = []  # of the steps written: number, seconds, bytes that all ranks sent; (n, 3)

    @property
    def elapsed_s(self) -> float:
        """Wall seconds of the run up to now, over all its parts."""
        return time.monotonic() - self._start_s

    def flush_due(self, every_s: float) -> bool:
        """Whether this rank would like to see the buffer written."""
        return bool(self._mine) and time.monotonic() - self._last_flush_s > every_s

    def step(self, step: int, epoch: float, samples: int | None, stats: StepStats) -> dict[str, float]:
        """Take one finished step, after so many samples if somebody knows; give its phases' seconds, or those of the
        step before, where a GPU may still be at it.

        Raises:
            MetricsError: a scalar or a table cannot be called that.
        """
        now_s = time.monotonic()
        step_s, self._last_step_s = now_s - self._last_step_s, now_s
        lap, traffic = self._clock.cut(), self._world.traffic.lap()
        rate = math.nan if stats.learning_rate is None else stats.learning_rate
        self._shared.append((step, epoch, now_s - self._start_s, step_s, rate, samples))
        if "loss" in stats.scalars:
            raise MetricsError("a scalar cannot be called 'loss': StepStats has a place for it")
        self._read_loss()
        self._loss = len(self._mine), stats.loss
        if stats.scalars:
            self._scalars.add(len(self._mine), stats.scalars)
        self._mine.append((lap, traffic.sent_bytes, traffic.dense_bytes))
        before, self._before = self._before, lap  # whose marks a device has passed by now
        phases = (lap if lap.known else before).seconds()
        for name, table in stats.tables.items():
            if name in OWN_TABLES or not usable(name):
                raise MetricsError(f"a table cannot be called {name!r}: the name stands for something else")
            if table.lasting:
                self._lasting[name] = (self._lasting.get(name, (step - 1,))[0], table)
            else:
                self._rows.setdefault(name, []).append((step, table))
        self.step_times_s.append(step_s)
        if len(self._mine) >= BLOCK_STEPS:
            self.flush()
        return phases

    def flush(self) -> None:
        """Write what is buffered. Collective."""
        self._read_loss()
        if self._mine:
            mine = np.array([[*lap.seconds().values(), *counts] for lap, *counts in self._mine])
            everyones = self._world.gather_bytes(packed(mine))
            if self._energy is not None and (joules := self._energy.lap()) is not None:
                self._scalars.put(len(self._mine) - 1, ENERGY, joules, "sum")
            scalars = self._scalars.put_together(self._world, len(self._mine))
            scalars["loss"] = scalars["loss"] * self._rescaled
            if self._world.rank == 0:
                shared, rows = self._columns(), np.stack([unpacked(theirs, *mine.shape) for theirs in everyones], 1)
                self._training.append(self._trained(shared, rows))
                self._append({**shared, **scalars}, rows)
            self._shared, self._mine = [], []
            self._write_tables()
        self._last_flush_s = time.monotonic()

    def hand_over(self, world: World) -> None:
        """Write what is buffered, over those ranks that are left, when others of before are gone, and their summands of
        losses with them: what the others' add up to counts for all. Collective.
        """
        self._rescaled, self._world = self._world.size / world.size, world
        self.flush()

    def evaluation(self, step: int, scores: Mapping[str, float], better: Mapping[str, Better]) -> None:
        """Write scores, after the steps that led to them, and which of each are better. Collective."""
        self.flush()
        if self._world.rank == 0:
            self._file.append_evaluation(step, self.elapsed_s, scores, better)

    def require_written(self) -> None:
        """Make sure that all that was flushed is in the file; for rank 0.

        Raises:
            MetricsError: it cannot be written.
        """
        self._file.catch_up()

    def finish(self, outcome: str, exit_code: int) -> None:
        """Write what is left, and why the run ended. Collective."""
        self.flush()
        self.ended_s = self.elapsed_s
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peaks = self._world.all_gather(torch.tensor([peak_bytes, device_peak_bytes(self._device) or 0])).numpy()
        if self._world.rank == 0:
            on_gpus = peaks[:, 1] if peaks[:, 1].any() else None
            self._file.finish(outcome, exit_code, peaks[:, 0], self.ended_s, device_peak_memory_bytes=on_gpus)

    def typical(self) -> tuple[float, float]:
        """Median seconds of the warm steps of this start, and the mean bytes that all ranks sent in them; NaN without
        steps, and on other ranks than rank 0.
        """
        rows = np.concatenate([np.zeros((0, 3)), *self._training])
        if not len(rows):
            return math.nan, math.nan
        rows = rows[step_times.warm(rows[:, 0], [rows[0, 0] - 1])]
        return float(np.median(rows[:, 1])), float(rows[:, 2].mean())

    def _read_loss(self) -> None:
        """Put the newest row's among the scalars, now that another row comes or it is to be written."""
        if self._loss is not None:
            row, loss = self._loss
            self._scalars.put(row, "loss", math.nan if loss is None else float(loss), "sum")
            self._loss = None

    def _columns(self) -> dict[str, np.ndarray]:
        """Those of SHARED that there are."""
        columns = zip(SHARED, zip(*self._shared, strict=True), strict=True)
        return {name: np.array(values) for name, values in columns if values[0] is not None}

    def _trained(self, shared: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """What ``typical`` needs of rows, shape (steps, ranks, phases and bytes)."""
        phases = self._clock.phases
        phase_s = rows[:, :, : len(phases)]
        between_s = phase_s[:, :, step_times.between_steps(phases)].sum(2).mean(1)
        rank_s = phase_s[:, :, step_times.in_thread(phases)].sum(2).max(1)
        seconds = step_times.training_s(shared["step_s"], between_s, rank_s)
        return np.stack([shared["step"], seconds, rows[:, :, len(phases)].sum(1)], 1)

    def _append(self, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        """Write rows, shape (steps, ranks, phases and bytes)."""
        count = len(self._clock.phases)
        self._file.append_steps(
            columns,
            phase_s=rows[:, :, :count],
            sent_bytes=rows[:, :, count].astype(np.int64),
            dense_bytes=rows[:, :, count + 1].astype(np.int64),
        )

    def _write_tables(self) -> None:
        """Write the tables' rows. Collective."""
        pending = [(name, [entry]) for name, entry in self._lasting.items()] + list(self._rows.items())
        for name, entries in pending:
            parts = [(step, table.columns(self._world)) for step, table in entries]
            if self._world.rank == 0:
                self._file.put_table(name, *joined(parts), entries[-1][1].attributes())
        self._rows = {}


COUNTS = 2  # columns at the end of a row that are whole numbers, of bytes


def packed(rows: np.ndarray) -> bytes:
    """A rank's rows, (steps, phases and counts), for the wire: seconds as float32, as the file has them, and no column
    of zeros, since most phases take no time.
    """
    present = np.array([column.any() for column in rows.T])
    seconds, counts = rows[:, :-COUNTS][:, present[:-COUNTS]], rows[:, -COUNTS:][:, present[-COUNTS:]]
    return present.tobytes() + seconds.T.astype(np.float32).tobytes() + counts.T.astype(np.int64).tobytes()


def unpacked(payload: bytes, steps: int, columns: int) -> np.ndarray:
    """Rows as they were, float64, but for the rounding of seconds."""
    rows = np.zeros((columns, steps))
    present = np.frombuffer(payload, bool, columns)
    seconds, counts = present.copy(), present.copy()
    seconds[-COUNTS:], counts[:-COUNTS] = False, False
    end = columns + 4 * steps * int(seconds.sum())
    rows[seconds] = np.frombuffer(payload[columns:end], np.float32).reshape(-1, steps)
    rows[counts] = np.frombuffer(payload[end:], np.int64).reshape(-1, steps)
    return rows.T


def joined(parts: Sequence[tuple[int, Columns]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Tables of several steps as one: the rows' steps, (k,), and the columns, each (k,). What a part lacks is NaN, and
    empty among texts.
    """
    counts = [len(next(iter(columns.values()), ())) for _, columns in parts]
    texts = {name: np.asarray(column).dtype.kind in "OSU" for _, columns in parts for name, column in columns.items()}
    every: dict[str, np.ndarray] = {}
    for name, text in texts.items():
        missing = [np.full(count, "" if text else np.nan, object if text else float) for count in counts]
        every[name] = np.concatenate(
            [np.asarray(columns.get(name, none)) for (_, columns), none in zip(parts, missing, strict=True)]
        )
    return np.repeat([step for step, _ in parts], counts), every
