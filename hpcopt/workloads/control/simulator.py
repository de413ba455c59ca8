"""What runs environments, and another in its place when it is lost."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from hpcopt.errors import DataError, JobError

AGAIN = 3  # times in a row that another is tried


class LostError(Exception):
    """The process that environments ran in is gone; the message says how."""


class Simulator(Protocol):
    """Environments, as ``hpcopt.workloads.control.here.Here`` has them."""

    def reset(self, index: int, seed: int) -> np.ndarray: ...
    def step(self, actions: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    def close(self) -> None: ...


class Replaceable:
    """A simulator that another takes the place of when it is lost, if the job says so.

    Attributes:
        restarts: how often another did.
    """

    def __init__(self, make: Callable[[], Simulator], name: str, *, restart: bool) -> None:
        """It is made when it is asked for.

        Args:
            make: one.
            name: of the environment, for messages.
            restart: try others when it is lost.
        """
        self._make, self._name, self._restart = make, name, restart
        self._now: Simulator | None = None
        self.restarts, self._lost, self._worked = 0, 0, False

    @property
    def now(self) -> Simulator:
        """The simulator. LostError: it is gone as soon as it is made."""
        if self._now is None:
            self._now = self._make()
        return self._now

    def works(self) -> None:
        """It did what it was for: what is lost from here on is counted anew."""
        self._lost, self._worked = 0, True

    def lose(self, cause: LostError) -> None:
        """Let it go; the next that is asked for is another.

        Raises:
            JobError: none ever worked.
            DataError: no other is wished for, or it does not help.
        """
        self.close()
        self._lost += 1
        if self._restart and self._lost <= AGAIN:
            self.restarts += 1
            return
        if not self._worked:
            raise JobError(
                f"[workload] environment = {self._name!r} is lost before its first step ({cause}): see that it runs by "
                "itself, with the job's arguments and wrappers"
            ) from cause
        if self._restart:
            raise DataError(f"the process of environments was lost {AGAIN} times in a row ({cause})") from cause
        raise DataError(
            f'the process of environments is gone ({cause}); [workload] lost = "restart" would go on with new ones'
        ) from cause

    def close(self) -> None:
        """Let it go."""
        if self._now is not None:
            self._now.close()
            self._now = None
