"""Where a run stands, and restoring it: by all ranks or by none."""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hpcopt.comm.world import World
from hpcopt.elastic.copies import Copies
from hpcopt.errors import CheckpointError, HpcoptError, JobError
from hpcopt.randomness import set_all_random_states
from hpcopt.shapes.solver import Checkpointed, Tree
from hpcopt.shapes.workload import Workload, WorkloadConfig
from hpcopt.store.checkpoint import SHARED, Checkpoints, ranks_of
from hpcopt.store.saved_parts import SavedParts
from hpcopt.store.tree import REMEDY
from hpcopt.trainer.finite import not_finite

MISFITS = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError)  # of a state that is another's


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: steps done.
        elapsed_s: wall seconds they took.
        scores: of the last evaluation.
        ranks: that saved this; 0 if nobody has yet.
        job: the job as plain data.
        plugins: what was plugged in, by name (``hpcopt.plugins.provenance``).
    """

    step: int = 0
    elapsed_s: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    ranks: int = 0
    job: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, dict[str, str]] = field(default_factory=dict)

    def require_same_samples(self, job: Mapping[str, Any], may_change: Set[str] = frozenset({"data", "model"})) -> None:
        """Check that a job draws the samples that the steps up to here drew; anything else may change.

        Args:
            job: as plain data.
            may_change: keys of its workload that do not decide which samples those are.

        Raises:
            JobError: on all ranks.
        """
        run = {"seed", *(("virtual_ranks",) if job.get("run", {}).get("reproducible") else ())}
        compared = (("run", run), ("workload", job.get("workload", {}).keys() - may_change))
        for section, keys in compared:
            for key in sorted(keys):
                before, now = self.job.get(section, {}).get(key), job.get(section, {}).get(key)
                if before != now:
                    raise JobError(
                        f"the checkpoint was made with [{section}] {key} = {before!r}, not {now!r}: "
                        "go on with that, or start over with --fresh"
                    ).everywhere()

    def changes(self, job: Mapping[str, Any]) -> list[str]:
        """What a job would do otherwise than the steps up to here, a line a setting."""
        before, now = (dict(_settings({k: v for k, v in j.items() if k != "run"})) for j in (self.job, job))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return [f"{key} = {now.get(key)!r}, was {before.get(key)!r}" for key in keys]

    def changed_plugins(self, plugins: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Warnings: of each plugged-in class whose file or version is another than before."""
        both = {name: (_version(was), _version(plugins[name])) for name, was in self.plugins.items() if name in plugins}
        return [
            f"warning: {name} is another than the one that this run began with: {was} then, {now} now"
            for name, (was, now) in both.items()
            if was != now
        ]


def _version(plugin: Mapping[str, str]) -> str:
    return " ".join(filter(None, (plugin["distribution"], plugin["version"], f"digest {plugin['digest'][:8]}")))


def restore(
    world: World,
    checkpoints: Checkpoints | Copies,
    solver: Checkpointed,
    job: Mapping[str, Any],
    say: Callable[[str], None],
    workload: tuple[Workload, WorkloadConfig] | None = None,
    go_on: Callable[[Tree], None] = set_all_random_states,
) -> Position | None:
    """Load the newest checkpoint that is whole, telling of any that is not, and of what the job changes. Collective.

    With another number of ranks than saved it, each rank draws new random numbers; the solver decides about its own
    state.

    Args:
        world, checkpoints: who restores, from where.
        solver: whose state is restored.
        job: as plain data.
        say: tells a person.
        workload: whose data have a state too, and its section of the job.
        go_on: takes the random generators' states, unless another number of ranks saved them.

    Returns:
        Where the run stands, or None if there is no checkpoint.

    Raises:
        CheckpointError: on all ranks: there are checkpoints but none is whole, or it does not fit the job.
        JobError: on all ranks: the job draws other samples.
    """
    steps = world.broadcast_integers(checkpoints.steps())
    for step in steps:
        try:
            with world.together():
                position, shared, parts, random = _read(checkpoints, step, world)
        except HpcoptError as error:  # on the rank that met the damage a CheckpointError, on the others what it said
            say(f"checkpoint of step {step} cannot be used: {error}")
            continue
        position.require_same_samples(job, *([workload[1].may_change] if workload else []))
        changes = position.changes(job)
        with world.together(), _fitting(changes):
            solver.load_state_dict(shared, parts.under("solver"))
            if workload is not None:
                workload[0].load_state_dict(parts.under("data"))
        if (wrong := not_finite(world, solver.must_be_finite())) is not None:
            say(f"checkpoint of step {step} cannot be used: {wrong} is not finite")
            continue
        if random is not None:
            go_on(random)
        say(f"resumed at step {position.step}" + "".join(f"\nfrom here on {change}" for change in changes))
        return position
    if steps:
        raise CheckpointError(
            f"no checkpoint in {checkpoints.folder} can be used; --fresh starts over beside them"
        ).everywhere()
    say(f"no checkpoint in {checkpoints.folder}: starting at step 0")
    return None


@contextmanager
def _fitting(changes: list[str]) -> Iterator[None]:
    """What a solver raises that finds another's state becomes one error, which names what the job changes."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError("; ".join([str(error), *changes])) from error
    except MISFITS as error:
        raise CheckpointError(
            "; ".join([f"the checkpoint does not fit the job ({error!r}): {REMEDY}", *changes])
        ) from error


def _read(checkpoints: Checkpoints | Copies, step: int, world: World) -> tuple[Position, Tree, SavedParts, Tree | None]:
    shared = checkpoints.read_part(step, SHARED)
    try:
        position = TypeAdapter(Position).validate_python(shared["position"])
        state = shared["solver"]
        if position.step != step or position.ranks != ranks_of(checkpoints.parts(step)):
            raise ValueError(f"it says step {position.step} of {position.ranks} ranks")
        parts = checkpoints.rank_parts(step, position.ranks)
        random = parts[world.rank] if position.ranks == world.size else None
        if random is not None:
            random["rng"], random["solver"]
    except (KeyError, TypeError, ValueError, ValidationError) as cause:
        raise CheckpointError(f"{checkpoints.path(step)} is not a checkpoint of a job ({cause}): {REMEDY}") from cause
    return position, state, parts, random


def _settings(tree: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value
