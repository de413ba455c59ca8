"""Each rank keeps the optimizer's state of its part of the parameters, moves that part, and sends it to the others.

Gradients are on all ranks, summed, as without. Optimizers that move each value by itself are cut evenly; for others a
rank has whole parameters. Either way every value moves by the same operations as on one rank: the result is bit-equal.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from hpcopt.comm.world import World
from hpcopt.optim import Arsg, Rsg, Signum, Svag
from hpcopt.optim.derivatives import Asking
from hpcopt.optim.modes import to_training
from hpcopt.optim.several import parts_of
from hpcopt.optim.signs import Vector
from hpcopt.optim.state import require_same_optimizer, restore_optimizer
from hpcopt.randomness import drawn
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.sharded import saved
from hpcopt.solvers.sharded.flat import Flat, spread
from hpcopt.store.saved_parts import SavedParts

# each value moves by itself; of the subclasses of these nobody knows
BY_VALUE: tuple[type[Optimizer], ...] = (Arsg, Rsg, Signum, Svag, optim.SGD, optim.Adam, optim.AdamW, optim.RAdam)
BY_VALUE += (optim.NAdam, optim.Adamax, optim.Adagrad, optim.Adadelta, optim.RMSprop, optim.Rprop, optim.ASGD)


class ShardedOptimizer:
    """What an optimizer does, shared out.

    Attributes:
        optimizer: of this rank's pieces of the parameters; made of the whole one that was given.
    """

    def __init__(self, optimizer: Optimizer, named: Sequence[tuple[str, nn.Parameter]], world: World) -> None:
        """Take an optimizer of all parameters, which has made no step yet; the parameters move into flat tensors."""
        self.optimizer, self._world = optimizer, world
        self._names = {p: name for name, p in named}
        self._shapes = saved.shapes_of(named)
        self._order = order_of(optimizer, self._names)
        self._members = [[p for p in group["params"] if p.numel()] for group in optimizer.param_groups]
        self._flats: list[Flat] = []
        self._flat_of: dict[nn.Parameter, Flat] = {}
        self._cut: dict[nn.Parameter, bool] = {}
        for part in parts_of(optimizer):
            self._lay_out([p for group in part.param_groups for p in group["params"]], type(part) in BY_VALUE)
        self._pieces = {p: self._piece(p) for p in self._flat_of if self._part(p).stop}
        self._localise()

    def step(self) -> None:
        """Move this rank's pieces, then bring all pieces to all ranks. Collective."""
        for p, piece in self._pieces.items():
            if piece is not p:
                piece.grad = None if p.grad is None else p.grad.reshape(-1)[self._part(p)]
        self.optimizer.step()
        for p, piece in self._pieces.items():
            if piece is not p:
                piece.grad = None
        self.spread()

    def spread(self) -> None:
        """Bring all pieces, as they are now, to all ranks. Collective."""
        for flat in self._flats:
            spread(flat, self._world)

    def sent_bytes(self) -> int:
        """Bytes that this rank sends in a step for the new parameters."""
        return sum(flat.sent_bytes(self._world.rank) for flat in self._flats)

    def predicted_bytes(self) -> list[int]:
        """Bytes of state that each rank keeps after a step: found by trying a step on one tensor of each kind."""
        totals, tried = [0] * self._world.size, dict[Any, tuple[float, float]]()
        owners = [part for part in parts_of(self.optimizer) for _ in part.param_groups]
        for index, (part, group) in enumerate(zip(owners, self.optimizer.param_groups, strict=True)):
            for p in self._members[index]:
                kind = (index, p.dtype, None if self._cut[p] else p.shape)
                if kind not in tried:
                    tried[kind] = _tried(part, group, p, cut=self._cut[p])
                by_value, by_piece = tried[kind]
                for rank in range(self._world.size):
                    own = self._flat_of[p].part(p, rank)
                    totals[rank] += round(by_value * (own.stop - own.start) + by_piece) if own.stop else 0
        return totals

    def plan(self) -> dict[str, str]:
        """For a person."""
        kept = self.predicted_bytes()
        spread = f"{max(kept):,} bytes on the fullest rank, {min(kept):,} on the emptiest"
        return {
            "optimizer state": f"{spread}, {sum(kept):,} on all",
            "bytes of shards": f"{self.sent_bytes():,} sent by each rank for the new parameters",
        }

    def rank_state_dict(self) -> Tree:
        """The state of this rank's pieces."""
        pieces = {}
        for p, piece in self._pieces.items():
            part = self._part(p)
            if self.optimizer.state.get(piece):
                state = dict(self.optimizer.state[piece])
                pieces[self._names[p]] = {"start": part.start, "stop": part.stop, "state": state}
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "pieces": len(group["params"])}
            for group in self.optimizer.param_groups
        ]
        return {"pieces": pieces, "groups": groups, "others": _others(self.optimizer.state)}

    def load_state_dict(self, shared: Mapping[str, Any], parts: SavedParts) -> None:
        """Take over what ranks have saved, in shards or, before, in whole.

        Args:
            shared: an ``optimizer_state``, or ``{"optimizer": name, "sharded": True}``.
            parts: of the ranks' own states.
        """
        require_same_optimizer(shared["optimizer"], self.optimizer)
        if "sharded" in shared:
            pieces, groups, others = saved.of_parts(parts), saved.groups_of(parts), saved.others_of_parts(parts)
        else:
            pieces, groups = saved.of_whole(shared, self._order, self._shapes), shared["param_groups"]
            others = saved.others_of_whole(shared)
        own = {piece: p for p, piece in self._pieces.items()}
        state: dict[int, Any] = {}
        kept: list[dict[str, Any]] = []
        for group, settings in zip(self.optimizer.param_groups, groups, strict=True):
            kept.append({**settings, "params": list(range(len(state), len(state) + len(group["params"])))})
            kept[-1].pop("pieces", None)
            for piece in group["params"]:
                p = own[piece]
                state[len(state)] = saved.state_of(pieces, self._names[p], self._part(p), piece.shape, cut=self._cut[p])
        known = {**others, **_known(state)}
        restore_optimizer(self.optimizer, {"optimizer": shared["optimizer"], "state": known, "param_groups": kept})

    def _lay_out(self, parameters: Sequence[nn.Parameter], cut: bool) -> None:
        """Put the parameters of one optimizer side by side, those of each dtype and device."""
        kinds: dict[Any, list[nn.Parameter]] = {}
        for p in parameters:
            if p.numel():
                kinds.setdefault((p.dtype, p.device), []).append(p)
        for same in kinds.values():
            flat = Flat(same, self._world.size, cut=cut)
            self._flats.append(flat)
            self._flat_of.update(dict.fromkeys(same, flat))
            self._cut.update(dict.fromkeys(same, cut))

    def _part(self, p: nn.Parameter) -> slice:
        return self._flat_of[p].part(p, self._world.rank)

    def _piece(self, p: nn.Parameter) -> nn.Parameter:
        """What the optimizer moves for a parameter: itself, or a stretch of its memory."""
        return nn.Parameter(p.detach().view(-1)[self._part(p)]) if self._cut[p] else p

    def _localise(self) -> None:
        """Leave this rank's pieces to the optimizer, with what it keeps of them from the start, and of no parameter."""
        states = dict(self.optimizer.state)
        self.optimizer.state.clear()
        self.optimizer.state.update(_others(states))
        for p, piece in self._pieces.items():
            if p in states:
                part, cut = self._part(p), self._cut[p]
                state = {key: _own(value, p, part) if cut else value for key, value in states[p].items()}
                self.optimizer.state[piece] = state
        for group in self.optimizer.param_groups:
            group["params"] = [self._pieces[p] for p in group["params"] if p in self._pieces]


def order_of(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> list[list[str]]:
    """The names of each group's parameters."""
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def joined(optimizer: Optimizer, named: Sequence[tuple[str, nn.Parameter]], parts: SavedParts, name: str) -> Tree:
    """The ``optimizer_state`` of all parameters, from what ranks have saved in shards.

    Args:
        optimizer: of all parameters, as built.
        named: the parameters.
        parts: of the ranks' own states.
        name: of the optimizer that was saved.
    """
    require_same_optimizer(name, optimizer)
    names, pieces, state = {p: n for n, p in named}, saved.of_parts(parts), dict[int, Any]()
    groups = []
    by_value = {
        p: type(part) in BY_VALUE for part in parts_of(optimizer) for g in part.param_groups for p in g["params"]
    }
    for group, settings in zip(optimizer.param_groups, saved.groups_of(parts), strict=True):
        groups.append({**settings, "params": list(range(len(state), len(state) + len(group["params"])))})
        groups[-1].pop("pieces", None)
        for p in group["params"]:
            whole = slice(0, p.numel())
            state[len(state)] = saved.state_of(pieces, names[p], whole, p.shape, cut=by_value[p]) if p.numel() else {}
    return {"optimizer": name, "state": {**saved.others_of_parts(parts), **_known(state)}, "param_groups": groups}


def _known(state: Mapping[int, Any]) -> dict[int, Any]:
    return {index: own for index, own in state.items() if own}


def _others(states: Mapping[Any, Any]) -> dict[Any, Any]:
    """What of an optimizer's state is of no parameter, and so the same on all ranks."""
    return {key: own for key, own in states.items() if not isinstance(key, Tensor)}


def _own(value: Any, p: nn.Parameter, part: slice) -> Any:
    """What of a value that an optimizer has made for a parameter is for a part of it."""
    if isinstance(value, Tensor) and value.shape == p.shape and p.dim():
        return value.reshape(-1)[part].clone()
    return value


def _tried(part: Optimizer, group: dict[str, Any], like: nn.Parameter, *, cut: bool) -> tuple[float, float]:
    """Bytes that one step leaves in an optimizer's state: by value of a parameter, and for a parameter at all."""
    kept_groups = [(own, dict(own)) for own in part.param_groups]
    kept, part.state = part.state, defaultdict(dict)
    p = nn.Parameter(torch.ones(16 if cut else like.shape, dtype=like.dtype))
    p.grad = torch.full_like(p, 0.5)
    try:
        with drawn():
            for own in part.param_groups:
                own["params"] = [p] if own is group else []
            to_training(part)
            if isinstance(part, Asking):
                part.differentiate(_Constant(p), None, 0)
            part.step()
        sizes = [(tensor.numel(), tensor.nbytes) for tensor in tensors_in(part.state[p])]
    finally:
        part.state = kept
        for own, before in kept_groups:
            own.clear()
            own.update(before)
    by_value = sum(nbytes for count, nbytes in sizes if count == p.numel()) / p.numel()
    return by_value, sum(nbytes for count, nbytes in sizes if count != p.numel())


class _Constant:
    """Derivatives by one tensor, ones wherever somebody looks."""

    def __init__(self, p: nn.Parameter) -> None:
        self.parameters = [p]

    def gradient(self, samples: Any, *, less_at: Sequence[Tensor] | None = None) -> SupportsFloat:
        self.parameters[0].grad = torch.ones_like(self.parameters[0])
        return 0.0

    def product(
        self, samples: Any, vectors: Sequence[Vector], *, part: int = 0, parts: int = 1
    ) -> tuple[SupportsFloat, list[Tensor]]:
        return self.gradient(samples), [torch.ones_like(self.parameters[0])]

    def variance(self, samples: Any, parts: int | None = None) -> tuple[SupportsFloat, list[Tensor]]:
        return self.gradient(samples), [torch.ones_like(self.parameters[0])]

    def at(self, point: Sequence[Tensor]) -> AbstractContextManager[None]:
        return nullcontext()


def tensors_in(node: Any) -> list[Tensor]:
    """All tensors of a state, however deep."""
    if isinstance(node, Tensor):
        return [node]
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return [tensor for one in inner for tensor in tensors_in(one)]


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes that an optimizer keeps of its parameters."""
    return sum(tensor.nbytes for state in optimizer.state.values() for tensor in tensors_in(state))
