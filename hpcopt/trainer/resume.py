"""Where a run stands, and restoring it: by all ranks or by none."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, HpcoptError, JobError
from hpcopt.solvers.solver import Solver, Tree
from hpcopt.store.checkpoint import SHARED, Checkpoints
from hpcopt.store.saved_parts import SavedParts
from hpcopt.trainer.randomness import set_random_state


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: steps done.
        elapsed_s: wall seconds they took.
        scores: of the last evaluation.
        ranks: that saved this; 0 if nobody has yet.
        job: the job as plain data.
    """

    step: int = 0
    elapsed_s: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    ranks: int = 0
    job: dict[str, Any] = field(default_factory=dict)

    def take_over(self, job: dict[str, Any], ranks: int) -> None:
        """Go on from here with this job and number of ranks: with the same samples and seed as the steps up to here;
        anything else may change.

        Raises:
            JobError: on all ranks.
        """
        compared = (("run", {"seed"}), ("workload", job["workload"].keys() - {"data", "model"})) if self.ranks else ()
        for section, keys in compared:
            for key in sorted(keys):
                before, now = self.job[section].get(key), job[section].get(key)
                if before != now:
                    raise JobError(
                        f"the checkpoint was made with [{section}] {key} = {before!r}, not {now!r}: "
                        "go on with that, or start over with --fresh"
                    ).everywhere()
        self.job, self.ranks = job, ranks


def restore(world: World, checkpoints: Checkpoints, solver: Solver, say: Callable[[str], None]) -> Position | None:
    """Load the newest checkpoint that is whole, telling of any that is not. Collective.

    With another number of ranks than saved it, each rank draws new random numbers; the solver decides about its own
    state.

    Returns:
        Where the run stands, or None if there is no checkpoint.

    Raises:
        CheckpointError: on all ranks: there are checkpoints but none is whole, or it does not fit the job.
    """
    steps = world.broadcast_integers(checkpoints.steps())
    for step in steps:
        try:
            with world.together():
                position, shared, parts, random = _read(checkpoints, step, world)
        except HpcoptError as error:  # on the rank that met the damage a CheckpointError, on the others what it said
            say(f"checkpoint of step {step} cannot be used: {error}")
            continue
        with world.together():
            solver.load_state_dict(shared, parts)
        if random is not None:
            set_random_state(random)
        say(f"resumed at step {position.step}")
        return position
    if steps:
        raise CheckpointError(
            f"no checkpoint in {checkpoints.folder} is whole; --fresh starts over beside them"
        ).everywhere()
    return None


def _read(checkpoints: Checkpoints, step: int, world: World) -> tuple[Position, Tree, SavedParts, Tree | None]:
    shared = checkpoints.read_part(step, SHARED)
    position = Position(**shared["position"])
    parts = checkpoints.rank_parts(step, position.ranks)
    random = parts[world.rank] if position.ranks == world.size else None
    return position, shared["solver"], parts.under("solver"), random
