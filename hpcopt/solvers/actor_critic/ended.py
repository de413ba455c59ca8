"""The table ``episodes`` of metrics.h5: the training episodes that ended in a step."""

from collections.abc import Mapping, Sequence

import numpy as np

from hpcopt.comm.world import World
from hpcopt.shapes.simulation import Ended
from hpcopt.shapes.stats import Columns


class EndedEpisodes:
    """Rows of one step: ``return``, the sum of an episode's rewards, ``length``, its steps of the environment, and
    ``env_steps``, those of all environments so far.
    """

    lasting = False

    def __init__(self, ended: Sequence[Ended], env_steps: int, *, shared: bool) -> None:
        """Of those that this rank knows of. If ``shared``, each rank knows some, and all make the table."""
        self._ended, self._env_steps, self._shared = list(ended), env_steps, shared

    def columns(self, world: World) -> Columns:
        """Collective, if shared: a gather at rank 0 of 16 bytes an episode."""
        found = np.array(self._ended, np.float64).reshape(-1, 2)
        if self._shared:
            parts = world.gather_bytes(found.tobytes())
            found = np.concatenate([found[:0], *(np.frombuffer(part).reshape(-1, 2) for part in parts)])
        counts = np.full(len(found), self._env_steps)
        return {"return": found[:, 0], "length": found[:, 1].astype(np.int64), "env_steps": counts}

    def attributes(self) -> Mapping[str, str]:
        return {}

    def lines(self) -> Sequence[str]:
        return ()
