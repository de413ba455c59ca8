"""A loader's batches, pass after pass; a checkpoint knows which comes next."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, DataError
from hpcopt.randomness import all_random_states, draws_kept, set_all_random_states
from hpcopt.shapes.solver import Tree
from hpcopt.workloads.sampler import StepSampler


class Feed:
    """Of one loop. It is kept in checkpoints: a loop that goes on in the middle of a pass gets the batches left of it.

    A loader on a ``StepSampler`` begins at the right step by itself. One with ``state_dict`` and ``load_state_dict``
    says itself where it stands. Any other goes through its pass again, from the random numbers with which that began;
    the batches that the loop had are thrown away.
    """

    def __init__(self, loader: Iterable[Any], world: World, say: Callable[[str], None]) -> None:
        """Feed one of the ranks from a loader; ``say`` tells a person."""
        self._loader, self._world, self._say = loader, world, say
        self._finds_its_place = isinstance(getattr(loader, "batch_sampler", None), StepSampler)
        self._stateful = all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))
        self._passes = self._given = 0
        self._began: Tree = None

    @property
    def steps_per_pass(self) -> int | None:
        """Batches of a pass; None if nobody knows."""
        try:
            return len(self._loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def __iter__(self) -> Iterator[Any]:
        """Give batches for ever.

        Raises:
            DataError: a pass gives none.
        """
        batches = self._resume() if self._given else self._begin()
        while True:
            for batch in batches:
                self._given += 1
                yield batch
            if not self._given:
                raise DataError(
                    f"pass {self._passes + 1} through the {type(self._loader).__name__} gave no batch: is the data set "
                    "smaller than a batch, or a generator, which can be gone through only once?"
                )
            self._passes, self._given = self._passes + 1, 0
            batches = self._begin()

    def _begin(self) -> Iterator[Any]:
        self._tell_pass()
        self._began = self._random_states()
        return iter(self._loader)

    def _resume(self) -> Iterator[Any]:
        """Go on in the middle of a pass; what is drawn to get there was drawn before."""
        self._tell_pass()
        if self._stateful:
            return iter(self._loader)
        if self._finds_its_place and self._given == self.steps_per_pass:
            return iter(())
        with draws_kept():
            self._go_back()
            batches = iter(self._loader)
            again = 0 if self._finds_its_place else self._given
            if sum(1 for _ in itertools.islice(batches, again)) < again:
                raise CheckpointError(
                    f"the checkpoint was made after {again} batches of a pass, and the loader has not as many: go on "
                    "with the same data, or start over with --fresh"
                )
        return batches

    def _tell_pass(self) -> None:
        """As ``torch.utils.data.DistributedSampler`` wants it."""
        sampler: Any = getattr(self._loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self._passes)

    def _random_states(self) -> Tree:
        generator = getattr(self._loader, "generator", None)
        return {"process": all_random_states(), "loader": None if generator is None else generator.get_state()}

    def _go_back(self) -> None:
        if self._began is None:
            return
        set_all_random_states(self._began["process"])
        if self._began["loader"] is not None:
            self._loader.generator.set_state(self._began["loader"])  # type: ignore[attr-defined]

    def rank_state_dict(self) -> Tree:
        """Where this rank stands."""
        state = {"passes": self._passes, "given": self._given}
        loader = self._loader.state_dict() if self._stateful else None  # type: ignore[attr-defined]
        return {**state, "began": None if self._stateful else self._began, "loader": loader}

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        """Go on from where the ranks stood; of another number of them, each with a new order of its own."""
        same = len(parts) == self._world.size
        state = parts[self._world.rank if same else 0]
        self._passes, self._given = state["passes"], state["given"]
        if same:
            self._began = state["began"]
            if self._stateful:
                self._loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        elif not self._finds_its_place:
            self._say(
                f"warning: {len(parts)} ranks went through this loader and now {self._world.size} do: the rest of the "
                "pass is in another order; a loader on session.sampler(...) would go on in the same"
            )
