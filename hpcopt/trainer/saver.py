"""Saving a job: all ranks together, each its own part, in the background if the job says so."""

from dataclasses import asdict
from typing import Any

from hpcopt.comm.world import World
from hpcopt.solvers.solver import Solver
from hpcopt.store.background import BackgroundWriter
from hpcopt.store.checkpoint import SHARED, Checkpoints, rank_part
from hpcopt.store.parallel import require_mpi
from hpcopt.trainer.randomness import random_state
from hpcopt.trainer.resume import Position


class Saver:
    """Makes checkpoints that count once every rank's part is on disk.

    In the background, a save takes a copy of the state and returns; the ranks agree later, at the end of some step,
    that all have written. There is at most one such checkpoint under way.

    Attributes:
        saved_step: of the newest checkpoint that counts.
    """

    def __init__(
        self, world: World, checkpoints: Checkpoints, background: bool, saved_step: int, *, one_file: bool = False
    ) -> None:
        """Raises UnsupportedError, on all ranks, if one_file is not to be had here."""
        self._world, self._checkpoints, self._background = world, checkpoints, background and not one_file
        self._communicator: Any = None
        if one_file:
            with world.together():
                require_mpi()
                self._communicator = world.transport.communicator
        self._writer = BackgroundWriter(checkpoints)
        self._pending: int | None = None
        self.saved_step = saved_step

    def save(self, position: Position, solver: Solver) -> None:
        """Save what is the same everywhere by rank 0, each rank's own by itself. Collective."""
        self.finish()
        step = position.step
        solver.gather()
        with self._world.together():
            if self._world.rank == 0:
                self._checkpoints.begin(step)
        parts = {rank_part(self._world.rank): {**random_state(), "solver": solver.rank_state_dict()}}
        if self._world.rank == 0:
            parts[SHARED] = {"position": asdict(position), "solver": solver.state_dict()}
        self._pending = step
        if self._background:
            self._writer.write(step, parts)
        else:
            with self._world.together():
                if self._communicator is not None:
                    self._checkpoints.write_together(step, self._communicator, parts)
                    parts = {}
                for name, tree in parts.items():
                    self._checkpoints.write_part(step, name, tree)
            self.finish()

    @property
    def written(self) -> bool:
        """Whether this rank is done with a checkpoint that does not count yet; finish() will not wait for it."""
        return self._pending is not None and not self._writer.busy

    def finish(self) -> None:
        """Make the checkpoint under way count, waiting for those still writing. Collective."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        with self._world.together():
            self._writer.wait()
        with self._world.together():
            if self._world.rank == 0:
                self._checkpoints.commit(step, [SHARED, *(rank_part(rank) for rank in range(self._world.size))])
        self.saved_step = step
