"""When losses are read: at once, or a step late, so that nobody waits for a step that a GPU has just been given."""

from typing import SupportsFloat


class Losses:
    """Of one rank.

    Attributes:
        step: that the loss given last is of; at first, the steps done before.
    """

    def __init__(self, *, late: bool, step: int) -> None:
        """``late`` is the same on all ranks."""
        self._late, self.step = late, step
        self._newest: tuple[int, SupportsFloat | None] = step, None

    @property
    def behind(self) -> bool:
        """Whether there is one that was not given yet."""
        return self.step < self._newest[0]

    def take(self, step: int, loss: SupportsFloat | None) -> float | None:
        """Take a step's; give that of the newest step that should be waited for by now, None if it has none."""
        before, self._newest = self._newest, (step, loss)
        return self._given(*(before if self._late else self._newest))

    def rest(self) -> float | None:
        """Give the newest, and wait for it."""
        return self._given(*self._newest)

    def _given(self, step: int, loss: SupportsFloat | None) -> float | None:
        self.step = step
        return None if loss is None else float(loss)
