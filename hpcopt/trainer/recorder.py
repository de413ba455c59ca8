"""Every rank's numbers of every step, on their way into rank 0's metrics.h5.

Steps are buffered and gathered in blocks, so that a step itself pays for no file and no message. Nothing is written by
two ranks.
"""

import resource
import time
from collections.abc import Mapping

import numpy as np
import torch

from hpcopt.comm.world import World
from hpcopt.exchange.choices import Choices
from hpcopt.phases import PHASES, PhaseClock
from hpcopt.shapes.solver import StepStats
from hpcopt.shapes.workload import Better
from hpcopt.store.metrics import MetricsFile

BLOCK_STEPS = 512  # for 128 ranks, an append then costs .05 ms of processor time a step; one of 64 steps .17 ms


class Recorder:
    """Buffers steps and flushes them. All methods are called on all ranks at the same steps; ``flush`` and what calls
    it are collective.
    """

    def __init__(self, world: World, file: MetricsFile, clock: PhaseClock, elapsed_s: float) -> None:
        """Start counting; ``elapsed_s`` are the seconds that earlier parts of the run took."""
        self._world, self._file, self._clock = world, file, clock
        self._columns: dict[str, list[float]] = {}
        self._mine: list[list[float]] = []  # phases, bytes sent, bytes dense: a row a step
        self._start_s = time.monotonic() - elapsed_s
        self._last_step_s = self._last_flush_s = time.monotonic()
        self._measured = _Measured()
        self.step_times_s: list[float] = []
        self.sent_bytes = self.dense_bytes = 0

    @property
    def elapsed_s(self) -> float:
        """Wall seconds of the run up to now, over all its parts."""
        return time.monotonic() - self._start_s

    def flush_due(self, every_s: float) -> bool:
        """Whether this rank would like to see the buffer written."""
        return bool(self._mine) and time.monotonic() - self._last_flush_s > every_s

    def step(self, step: int, epoch: float, samples: int, loss: float, stats: StepStats) -> dict[str, float]:
        """Take one finished step; give its phases' seconds."""
        now_s = time.monotonic()
        step_s, self._last_step_s = now_s - self._last_step_s, now_s
        phases, traffic = self._clock.lap(), self._world.traffic.lap()
        row = {
            "step": step,
            "epoch": epoch,
            "time_s": self.elapsed_s,
            "step_s": step_s,
            "loss": loss,
            "learning_rate": stats.learning_rate,
            "samples": samples,
            **stats.extra,
        }
        for name, value in row.items():
            self._columns.setdefault(name, []).append(value)
        self._mine.append([*(phases[name] for name in PHASES), traffic.sent_bytes, traffic.dense_bytes])
        self._measured.of(stats.choices, step)
        self.step_times_s.append(step_s)
        self.sent_bytes += traffic.sent_bytes
        self.dense_bytes += traffic.dense_bytes
        if len(self._mine) >= BLOCK_STEPS:
            self.flush()
        return phases

    def flush(self) -> None:
        """Write what is buffered. Collective."""
        if self._mine:
            everyones = self._world.all_gather(torch.tensor(self._mine, dtype=torch.float64)).numpy()
            self._measured.gather(self._world)
            if self._world.rank == 0:
                self._append(np.swapaxes(everyones, 0, 1))
                self._measured.write(self._file)
            self._columns, self._mine = {}, []
        self._last_flush_s = time.monotonic()

    def evaluation(self, step: int, scores: Mapping[str, float], better: Mapping[str, Better]) -> None:
        """Write scores, after the steps that led to them, and which of each are better. Collective."""
        self.flush()
        if self._world.rank == 0:
            self._file.append_evaluation(step, self.elapsed_s, scores, better)

    def finish(self, outcome: str, exit_code: int) -> None:
        """Write what is left, and why the run ended. Collective."""
        self.flush()
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peaks_bytes = self._world.all_gather(torch.tensor([peak_bytes])).numpy().ravel()
        if self._world.rank == 0:
            self._file.finish(outcome, exit_code, peaks_bytes)

    def _append(self, rows: np.ndarray) -> None:
        """Write rows, shape (steps, ranks, phases and bytes)."""
        count = len(PHASES)
        self._file.append_steps(
            {name: np.array(values) for name, values in self._columns.items()},
            phase_s=rows[:, :, :count],
            sent_bytes=rows[:, :, count].astype(np.int64),
            dense_bytes=rows[:, :, count + 1].astype(np.int64),
        )


class _Measured:
    """What the exchange's choices took, from the first step of this start on."""

    def __init__(self) -> None:
        self._choices: Choices | None = None
        self._first_step = self._steps = 0
        self._sum_s = torch.zeros(0, dtype=torch.float64)

    def of(self, choices: Choices | None, step: int) -> None:
        """Take note of what a step went by."""
        if self._choices is None and choices is not None:
            self._choices, self._first_step = choices, step
            self._sum_s = torch.zeros(len(choices.buckets), dtype=torch.float64)

    def gather(self, world: World) -> None:
        """Of every step and bucket the shortest time over the ranks: of the rank that waited for none. Collective."""
        if self._choices is not None:
            times_s = world.all_reduce(self._choices.lap(), "min")
            self._sum_s += times_s.sum(0)
            self._steps += len(times_s)

    def write(self, file: MetricsFile) -> None:
        if self._choices is None:
            return
        buckets = self._choices.buckets
        algorithms = [choice.algorithm for choice in buckets]
        columns = {
            "bucket": np.arange(len(buckets)),
            "bytes": np.array([choice.values_bytes for choice in buckets]),
            "predicted_s": np.array([choice.predicted_s.get(choice.algorithm, np.nan) for choice in buckets]),
            "measured_s": self._sum_s.numpy() / self._steps if self._steps else np.full(len(buckets), np.nan),
            "steps": np.full(len(buckets), self._steps),
        }
        for name in sorted({name for choice in buckets for name in choice.predicted_s}):
            times_s = [choice.predicted_s.get(name, np.nan) for choice in buckets]
            columns[f"predicted_{name}_s"] = np.array(times_s)
        file.put_choices(self._first_step - 1, algorithms, columns, self._choices.calibration())
