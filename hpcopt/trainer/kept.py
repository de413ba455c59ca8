"""What somebody's own loop keeps in its checkpoints: objects by name, each as data.

==========================================  ==========================================================================
a thing                                     what is kept of it
==========================================  ==========================================================================
``nn.Module``                               its ``state_dict``: rank 0's, for all ranks
``torch.optim.Optimizer``                   its state and its settings, such as the learning rate: rank 0's; each rank's
                                            own beside them if a ``Replicator`` wrapped it
a generator of torch, numpy or ``random``   each rank's own; ranks of another number go on with what they have
what has a ``rank_state_dict``              each rank's own beside the common: ``Exchange``, ``Kaisa``, ``LocalSteps``
what has ``state_dict, load_state_dict``    rank 0's: schedulers, scalers, classes of one's own
``Tensor``, ``numpy.ndarray``, ``dict``     the values, put back into the same object: rank 0's
==========================================  ==========================================================================
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, JobError, fitting
from hpcopt.optim.modes import is_aside, to_evaluation, to_training
from hpcopt.optim.state import changed_settings, optimizer_state, restore_optimizer
from hpcopt.randomness import python_state, set_python_state
from hpcopt.shapes.solver import Tree, optimizer_tensors
from hpcopt.store.saved_parts import SavedParts
from hpcopt.store.tree import pack


@dataclass(frozen=True)
class Part:
    """How one thing becomes data and comes back.

    Attributes:
        shared: gives what is the same on all ranks.
        own: gives this rank's own.
        load: takes both, the latter of all ranks that saved.
    """

    shared: Callable[[], Tree]
    own: Callable[[], Tree]
    load: Callable[[Tree, Sequence[Tree]], None]


class Kept:
    """The things; a ``Checkpointed``. What a checkpoint holds of one is given to it when it is added.

    Attributes:
        optimizers: none, although some may be kept: a loop of somebody's own may change parameters between their steps.
        resumed: whether there was a checkpoint.
    """

    optimizers: Sequence[Optimizer] = ()

    def __init__(self, world: World, say: Callable[[str], None] = lambda _: None) -> None:
        """``say`` tells a person."""
        self._world, self._say = world, say
        self._things: dict[str, Any] = {}
        self._parts: dict[str, Part] = {}
        self._aside: list[Optimizer] = []  # those that were moved to where they are evaluated
        self._saved: tuple[Mapping[str, Tree], SavedParts] | None = None

    @property
    def resumed(self) -> bool:
        return self._saved is not None

    def add(self, name: str, thing: Any, *, own: bool = False) -> None:
        """Keep a thing, and let it go on from the checkpoint, if there is one. Collective.

        Args:
            name: for good.
            thing: see above.
            own: its ``state_dict`` is each rank's own.

        Raises:
            JobError: on all ranks: the name is taken, or the thing cannot be kept.
            CheckpointError: on all ranks: the checkpoint does not have it, or another one.
        """
        with self._world.together():
            if name in self._things:
                raise JobError(f"keep({name}=...): there is one of that name")
            self._things[name], self._parts[name] = thing, self._part(name, thing, own)
            if self._saved is not None:
                self._load(name, *self._saved)

    def unclaimed(self) -> list[str]:
        """Names in the checkpoint that nobody keeps any more."""
        return [] if self._saved is None else [name for name in self._saved[0] if name not in self._things]

    def gather(self) -> None:
        """Have nothing under way: ``LocalSteps`` and their like wait for it. Parameters move to where their optimizers
        want them to be evaluated and saved.
        """
        for thing in self._things.values():
            if callable(collect := getattr(thing, "collect", None)):
                collect()
        for thing in self._things.values():
            if isinstance(thing, Optimizer):
                to_evaluation(thing)
                self._aside.append(thing)

    def go_on(self) -> None:
        """Move them back, where ``gather`` or the checkpoint has moved them."""
        while self._aside:
            if is_aside(optimizer := self._aside.pop()):
                to_training(optimizer)

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters of modules, and what optimizers keep of them."""
        for name, thing in self._things.items():
            if isinstance(thing, nn.Module):
                yield from ((f"{name}.{inner}", p) for inner, p in thing.named_parameters())
            elif isinstance(thing, Optimizer):
                yield from optimizer_tensors(thing)

    def state_dict(self) -> Tree:
        return {name: part.shared() for name, part in self._parts.items()}

    def rank_state_dict(self) -> Tree:
        return {name: part.own() for name, part in self._parts.items()}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """Have the states ready for what is added from now on."""
        self._saved = shared, SavedParts.of(parts)

    def _load(self, name: str, shared: Mapping[str, Tree], parts: SavedParts) -> None:
        if name not in shared:
            raise CheckpointError(
                f"the checkpoint has no `{name}`, only {', '.join(shared)}: keep the same things under the same names, "
                "or start over with --fresh"
            )
        thing = self._things[name]
        made = [dict(group) for group in thing.param_groups] if isinstance(thing, Optimizer) else []
        with fitting(f"the script's `{name}`"), torch.no_grad():
            self._parts[name].load(shared[name], parts.under(name))
        if isinstance(thing, Optimizer):
            self._aside.append(thing)
        if made and (changes := changed_settings(thing, made)):
            self._say(f"`{name}` goes on with the checkpoint's {', '.join(changes)}")

    def _part(self, name: str, thing: Any, own: bool) -> Part:
        """The way of a thing; its state, as it is now, must be data."""
        refused = f"cannot keep `{name}`, of type {type(thing).__name__}: "
        if (part := part_of(thing, self._world, own)) is None:
            raise JobError(
                f"{refused}a checkpoint holds data, so it must be a module, an optimizer, a random generator, a "
                "tensor, an array, a dict of data, or have state_dict() and load_state_dict(state)"
            )
        try:
            pack([part.shared(), part.own()])
        except (TypeError, CheckpointError) as error:
            raise JobError(f"{refused}its state is not data ({error})") from None
        return part


def part_of(thing: Any, world: World, own: bool) -> Part | None:
    """How a thing is kept; None: it cannot be."""
    match thing:
        case Optimizer():
            return of_optimizer(thing)
        case torch.Generator():
            return drawn(thing.get_state, thing.set_state, world)
        case np.random.Generator():
            generator = thing.bit_generator
            return drawn(lambda: generator.state, lambda s: setattr(generator, "state", s), world)
        case np.random.RandomState():
            return drawn(lambda: thing.get_state(legacy=False), thing.set_state, world)
        case random.Random():
            return drawn(lambda: python_state(thing), lambda s: set_python_state(s, thing), world)
        case Tensor():
            return common(thing.detach, lambda s: thing.detach().copy_(_of_shape(s, thing.shape)))
        case np.ndarray():
            return common(lambda: thing, lambda s: np.copyto(thing, _of_shape(s, thing.shape), casting="no"))
        case dict():
            return common(lambda: thing, lambda s: _replace(thing, s))
    if isinstance(thing, type) or not callable(getattr(thing, "load_state_dict", None)):
        return None
    return with_state_dict(thing, world, own)


def of_optimizer(optimizer: Any) -> Part:
    """The way of an optimizer, which may have a state of each rank's own, ``rank_state_dict``."""
    own = getattr(optimizer, "rank_state_dict", _nothing)

    def load(shared: Tree, parts: Sequence[Tree]) -> None:
        restore_optimizer(optimizer, shared, settings=True)
        if own is not _nothing and len(parts) and parts[0] is not None:
            optimizer.load_rank_state_dicts(parts)

    return Part(lambda: optimizer_state(optimizer), own, load)


def with_state_dict(thing: Any, world: World, own: bool) -> Part | None:
    """The way of what says itself what its state is."""
    whole, rank = (callable(getattr(thing, name, None)) for name in ("state_dict", "rank_state_dict"))
    if rank:
        load = thing.load_state_dict if whole else lambda _, parts: thing.load_state_dict(parts)
        return Part(thing.state_dict if whole else _nothing, thing.rank_state_dict, load)
    if not whole:
        return None
    if not own:
        return common(thing.state_dict, thing.load_state_dict)

    def load_own(_: Tree, parts: Sequence[Tree]) -> None:
        if len(parts) != world.size:
            raise CheckpointError(
                f"the state of a {type(thing).__name__} is each rank's own, {len(parts)} ranks saved theirs, and now "
                f"there are {world.size}: go on with {len(parts)}, or start over with --fresh"
            )
        thing.load_state_dict(parts[world.rank])

    return Part(_nothing, thing.state_dict, load_own)


def common(state: Callable[[], Tree], load: Callable[[Tree], Any]) -> Part:
    """The way of what is the same on all ranks."""
    return Part(state, _nothing, lambda shared, _: load(shared))


def drawn(state: Callable[[], Tree], load: Callable[[Tree], Any], world: World) -> Part:
    """The way of random numbers: each rank's own, and no other rank's."""
    return Part(_nothing, state, lambda _, parts: load(parts[world.rank]) if len(parts) == world.size else None)


def _replace(thing: dict[Any, Any], saved: Mapping[Any, Any]) -> None:
    thing.clear()
    thing.update(saved)


def _nothing() -> None:
    return None


def _of_shape(saved: Any, shape: Sequence[int]) -> Any:
    """A saved tensor or array, which must not be spread out over a larger one."""
    if tuple(saved.shape) != tuple(shape):
        raise ValueError(f"it is of shape {tuple(saved.shape)}, not {tuple(shape)}")
    return saved
