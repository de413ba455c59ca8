"""Saving a job: all ranks together, each its own part, in the background if the job says so."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hpcopt.comm.world import World
from hpcopt.errors import DivergedError, HpcoptError
from hpcopt.phases import PhaseClock
from hpcopt.randomness import all_random_states
from hpcopt.shapes.solver import Checkpointed, Tree
from hpcopt.store.background import BackgroundWriter
from hpcopt.store.checkpoint import SHARED, Checkpoints, rank_part
from hpcopt.store.parallel import require_mpi
from hpcopt.trainer.finite import not_finite
from hpcopt.trainer.resume import Position


class Saver:
    """Makes checkpoints that count once every rank's part is on disk, and the next step's loss has shown it good.

    In the background, a save takes a copy of the state and returns; the ranks agree later, at the end of some step,
    that all have written. There is at most one such checkpoint under way. What only the solver's optimizers change is
    copied while the next gradients are computed, and the optimizers' next step waits for it.

    Attributes:
        saved_step: of the newest checkpoint that counts, or where the run began.
    """

    def __init__(
        self,
        world: World,
        checkpoints: Checkpoints,
        background: bool,
        saved_step: int,
        *,
        clock: PhaseClock,
        one_file: bool = False,
        goes_on: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Get ready.

        Args:
            world, checkpoints: who saves, where to.
            background: whether training goes on while a checkpoint is written.
            saved_step: where the run stands.
            clock: that counts the seconds.
            one_file: whether all ranks write one file.
            goes_on: whether training does where a checkpoint cannot be written; ``say`` hears of it then.
            say: tells a person.

        Raises:
            UnsupportedError: on all ranks: one_file is not to be had here.
        """
        self._world, self._checkpoints, self._background = world, checkpoints, background and not one_file
        self._clock, self._goes_on, self._say = clock, goes_on, say
        self._failure: HpcoptError | None = None
        self._communicator: Any = None
        if one_file:
            with world.together():
                require_mpi()
                self._communicator = world.transport.communicator
        self._writer = BackgroundWriter(checkpoints)
        self._holds: list[RemovableHandle] = []
        self._pending: int | None = None
        self._held_s = 0.0
        self.saved_step = saved_step

    def save(
        self,
        position: Position,
        solver: Checkpointed,
        data: Tree = None,
        records: Callable[[], None] = lambda: None,
    ) -> None:
        """Save what is the same everywhere by rank 0, each rank's own by itself. Collective.

        Args:
            position, solver: what is saved.
            data: this rank's own state of the workload's data.
            records: raises on rank 0 if the steps' records are not on disk, without which a checkpoint is none.

        Raises:
            CheckpointError: on all ranks: it cannot be written, and training does not go on then.
            DivergedError: on all ranks: the parameters are no longer finite, and nothing is saved.
            JobError: on all ranks: another job has taken over the run directory.
        """
        self.finish()
        step, start_s = position.step, time.monotonic()
        solver.gather()
        if (wrong := not_finite(self._world, solver.must_be_finite())) is not None:
            raise DivergedError(f"{wrong} is not finite after step {step}, and is not saved; {self.kept()}")
        self._require_ours()
        with self._storing():
            self._write(step, position, solver, data, records)
        self._held_s = time.monotonic() - start_s

    def _write(
        self, step: int, position: Position, solver: Checkpointed, data: Tree, records: Callable[[], None]
    ) -> None:
        with self._world.together():
            if self._world.rank == 0:
                records()
                self._checkpoints.begin(step)
        parts = {rank_part(self._world.rank): own_part(solver, data)}
        if self._world.rank == 0:
            parts[SHARED] = shared_part(position, solver)
        self._pending = step
        if self._background:
            self._writer.write(step, parts, _moved_by(solver.optimizers))
            self._holds = [o.register_step_pre_hook(self._before_update) for o in solver.optimizers]
        else:
            with self._world.together():
                if self._communicator is not None:
                    self._checkpoints.write_together(step, self._communicator, parts)
                    parts = {}
                for name, tree in parts.items():
                    self._checkpoints.write_part(step, name, tree)

    def _require_ours(self) -> None:
        with self._world.together():
            if self._world.rank == 0:
                self._checkpoints.require_ours()

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """What all ranks cannot write, given back its room, ends the run, or just this checkpoint."""
        try:
            yield
        except HpcoptError as error:
            if not error.on_every_rank:
                raise
            self._pending = None
            self._let_go()
            if self._world.rank == 0:
                self._checkpoints.abandon()
            if not self._goes_on:
                raise
            self._failure = error
            self._say(f"warning: {error}. Training goes on; the next checkpoint that is due tries again")

    def _before_update(self, *_: object) -> None:
        with self._clock("checkpoint"):
            self._writer.copied()
            self._let_go()

    def _let_go(self) -> None:
        for hold in self._holds:
            hold.remove()
        self._holds = []

    @property
    def under_way(self) -> bool:
        """Whether there is a checkpoint that does not count yet."""
        return self._pending is not None

    @property
    def written(self) -> bool:
        """Whether this rank is done with a checkpoint that does not count yet; finish() will not wait for it."""
        return self._pending is not None and not self._writer.busy

    def shown_good(self, step: int) -> bool:
        """Whether the losses of all steps up to this one, each of them finite, show that a checkpoint under way is."""
        return self._pending is not None and self._pending < step

    def finish(self) -> None:
        """Make the checkpoint under way count, waiting for those still writing. Collective."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        self._require_ours()
        with self._storing():
            with self._world.together():
                self._writer.wait()
            self._let_go()
            with self._world.together():
                if self._world.rank == 0:
                    self._checkpoints.commit(step, [SHARED, *(rank_part(rank) for rank in range(self._world.size))])
            self.saved_step = step

    def require_saved(self, step: int) -> None:
        """Raise what kept the checkpoint of a step from being written, on all ranks, if it is not."""
        if self._failure is not None and self.saved_step != step:
            raise self._failure

    def give_up(self, step: int) -> None:
        """Finish the checkpoint under way, unless it is of ``step``, whose parameters proved bad: that never counts.
        Collective.
        """
        if self._pending == step:
            self._pending = None
            with contextlib.suppress(HpcoptError):
                self._writer.wait()
            self._let_go()
        self.finish()

    def close(self) -> None:
        """Write nothing more, and wait for what this rank is writing; a checkpoint under way never counts."""
        self._writer.close()
        self._let_go()

    @property
    def took_s(self) -> float:
        """Seconds that the newest checkpoint cost this rank, those of the background too; 0 before the first."""
        return self._held_s + self._writer.took_s

    def kept(self) -> str:
        """What a run that diverged has left, and what to do with it."""
        steps = ", ".join(map(str, self._checkpoints.steps()))
        advice = "lower the learning rate or clip gradients (a job: [solver] clip_norm), and start again"
        if not steps:
            return f"no checkpoint was made. To begin at step 0, {advice}"
        return f"the checkpoints of step {steps} are kept. To go on from the newest, {advice}"


def shared_part(position: Position, solver: Checkpointed) -> dict[str, Tree]:
    """What all ranks have in common, for a checkpoint."""
    return {"position": asdict(position), "solver": solver.state_dict()}


def own_part(solver: Checkpointed, data: Tree) -> dict[str, Tree]:
    """What this rank has alone."""
    return {**all_random_states(), "solver": solver.rank_state_dict(), "data": data}


def _moved_by(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """The tensors that optimizers' steps change: parameters and their state."""
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    return parameters + [value for value in states if isinstance(value, Tensor)]
