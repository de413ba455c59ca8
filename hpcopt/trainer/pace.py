"""When a checkpoint is due: at steps that the job names, or as often as a share of the run's time pays for."""

import time

LEAST_S = 5.0  # before the first, which is early since a run that is stopped before it has nothing; and between two


class Pace:
    """Decides for a run; rank 0's clock counts, and its wish travels with the vote at the end of each step."""

    def __init__(self, every: int | None, share: float, *, at_evaluations: bool) -> None:
        """Start counting.

        Args:
            every: steps from one checkpoint to the next; None to go by time.
            share: of the run's time that checkpoints may take, by time.
            at_evaluations: by time, take only steps that end with an evaluation: where a checkpoint ends what is in
                flight, it would otherwise depend on the clock what is trained.
        """
        self._every, self._share, self._at_evaluations = every, share, at_evaluations
        self._last_s = time.monotonic()

    def wanted(self, took_s: float) -> bool:
        """Whether it is time.

        Args:
            took_s: seconds that the newest checkpoint cost; 0 before the first.
        """
        return self._every is None and time.monotonic() - self._last_s >= max(LEAST_S, took_s / self._share)

    def due(self, step: int, *, wanted: bool, evaluated: bool) -> bool:
        """Whether to save after this step, the same on all ranks.

        Args:
            step: number of steps done.
            wanted: what ``wanted`` said on rank 0.
            evaluated: whether the step ended with an evaluation.
        """
        due = step % self._every == 0 if self._every else wanted and (evaluated or not self._at_evaluations)
        if due:
            self._last_s = time.monotonic()
        return due
