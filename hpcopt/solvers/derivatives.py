"""Derivatives of the global mean loss: gradients, Hessian times a vector and variances, summed over the ranks.

The loss of a global batch of B samples is their mean. Rank r, with b_r of them, weighs its own mean by b_r / B, so that
the plain sum over ranks is the derivative of the global mean, whatever the shares.

Gradients ride the job's exchange, overlapped with the backward pass. What takes as many values again, a product or
squares, rides an exchange of its own with the same settings, so it is compressed, counted and owed as gradients are;
such a step sends twice as much.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.exchange import Exchange
from hpcopt.exchange.reducer import Tree
from hpcopt.optim.products import gradients_and_products
from hpcopt.optim.signs import Vector
from hpcopt.randomness import random_state, replayed
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.late import Late, total
from hpcopt.shapes.solver import Task
from hpcopt.solvers.over_virtual import OverVirtualRanks
from hpcopt.store.saved_parts import SavedParts

Piece = Callable[[], Any]  # gives a micro-batch when it is needed


class GlobalLoss:
    """The ``hpcopt.optim.derivatives.Derivatives`` of a task.

    Attributes:
        exchange: of the gradients.
        virtual: how gradients of virtual ranks are come by, where the context has them.
        loss: of a model and a micro-batch: the mean over its samples.
        parameters: those that are trained; the order of points and vectors.
    """

    def __init__(self, task: Task, context: Context, accumulate: int = 1) -> None:
        """Start from rank 0's parameters. Collective.

        Args:
            task: whose loss it is.
            context: of the solver.
            accumulate: micro-batches that a rank's share of a step's batch is cut into; none of other samples' is
                larger.
        """
        world, self._context, self._clock = context.world, context, context.clock
        self.loss, self._model, self._samples, self._accumulate = task.loss, task.model, task.samples, accumulate
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]
        self.exchange = Exchange(
            world,
            task.model,
            context.required_exchange,
            broadcast=True,
            seed=context.seed("exchange"),
            clock=context.clock,
            virtual=context.virtual,
        )
        self.virtual: OverVirtualRanks | None = None
        if context.virtual is not None:
            self.virtual = OverVirtualRanks([task.model], [self.exchange], world, context.virtual)
        self._second: Exchange | None = None

    def expect_second(self, parameters: Sequence[nn.Parameter]) -> None:
        """Get ready for products and variances, in the order of these parameters. Collective."""
        names: dict[Tensor, str] = {p: name for name, p in self._model.named_parameters() if p.requires_grad}
        self.parameters = list(parameters)
        self._sums = [nn.Parameter(torch.zeros_like(p)) for p in self.parameters]
        named = [(f"{names[p]}.product", s) for p, s in zip(self.parameters, self._sums, strict=True)]
        context = self._context
        seed = context.seed("products")
        self._second = Exchange(context.world, named, context.required_exchange, seed=seed, clock=context.clock)

    def gradient(self, samples: Any, *, less_at: Sequence[Tensor] | None = None) -> float | Late:
        if self.virtual is not None:
            return self.virtual.gradient(samples, self._accumulate, self._backward)
        pieces, losses = self._pieces(samples), list[Tensor]()
        self.exchange.zero(backwards=len(pieces) * (1 if less_at is None else 2))
        for piece in pieces:
            batch = piece()
            random = None if less_at is None else random_state()
            losses.append(self._backward(batch))
            if less_at is not None and random is not None:
                with self.at(less_at), replayed(random):
                    self._backward(batch, -1.0)
        self.exchange.finish()
        return total(losses)

    def product(
        self, samples: Any, vectors: Sequence[Vector], *, part: int = 0, parts: int = 1
    ) -> tuple[float | Late, list[Tensor]]:
        losses, (second, pieces) = [], self._begin_second(samples)
        for piece in pieces:
            whole = piece()
            cut = whole.split(parts)
            for place, batch in enumerate(cut):
                curved = place == part % len(cut)
                with self._clock("backward"):
                    if curved:
                        loss, gradients, seen = gradients_and_products(
                            self._model, partial(self._forward, batch), self.parameters, vectors
                        )
                        _add(self._sums, seen, len(cut))  # whatever its size: the mean over parts is the whole
                    else:
                        loss = self._forward(batch, self._model)
                        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
                    _add(self.parameters, gradients)
                losses.append(loss.detach())
        return total(losses), self._finish_second(second)

    def variance(self, samples: Any, parts: int | None = None) -> tuple[float | Late, list[Tensor]]:
        losses, (second, pieces) = [], self._begin_second(samples)
        for piece in pieces:
            for batch in _parts(piece(), parts):
                with self._clock("forward"):
                    loss = self.loss(self._model, batch)
                with self._clock("backward"):
                    found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
                    _add(self.parameters, found, batch.weight)
                    _add(self._sums, [None if g is None else g.square() for g in found], batch.weight)
                losses.append(loss.detach() * batch.weight)
        squares = self._finish_second(second)
        means = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return total(losses), [(s - g.square()).clamp_(min=0) for s, g in zip(squares, means, strict=True)]

    @contextmanager
    def at(self, point: Sequence[Tensor]) -> Iterator[None]:
        kept = [p.data for p in self.parameters]
        buffers = [b.clone() for b in self._model.buffers()]
        for p, values in zip(self.parameters, point, strict=True):
            p.data = values
        try:
            yield
        finally:
            for p, values in zip(self.parameters, kept, strict=True):
                p.data = values
            with torch.no_grad():
                for b, values in zip(self._model.buffers(), buffers, strict=True):
                    b.copy_(values)

    def planned_bytes(self) -> int:
        """Bytes that this rank sends for a product or a variance, beside the gradients' own."""
        return 0 if self._second is None else self._second.planned_bytes()

    def rank_state_dict(self) -> Tree:
        """This rank's own state."""
        state = {"exchange": self.exchange.rank_state_dict()}
        return state if self._second is None else {**state, "products": self._second.rank_state_dict()}

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        """Take over the states of all ranks that saved."""
        self.exchange.load_state_dict(SavedParts.of(parts).under("exchange"))
        if self._second is not None:
            self._second.load_state_dict(SavedParts.of(parts).under("products"))

    def _pieces(self, samples: Any) -> list[Piece]:
        """This rank's micro-batches, none of them empty; those of numbers are read one after the other."""
        if not isinstance(samples, np.ndarray):
            return [partial(_given, micro) for micro in samples.split(self._accumulate)]
        data, world = self._samples, self._context.world
        assert data is not None
        mine = np.array_split(samples, world.size)[world.rank]
        most = max(1, data.batch // (world.size * self._accumulate))
        cut = [piece for piece in np.array_split(mine, -(-len(mine) // most) or 1) if len(piece)]
        return [partial(data.at, piece, len(samples)) for piece in cut]

    def _backward(self, batch: Batch, sign: float = 1.0) -> Tensor:
        loss = self._forward(batch, self._model, sign)
        with self._clock("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _forward(self, batch: Batch, model: nn.Module, sign: float = 1.0) -> Tensor:
        """A micro-batch's summand of the loss."""
        with self._clock("forward"):
            loss: Tensor = self.loss(model, batch) * (sign * batch.weight)
        return loss

    def _begin_second(self, samples: Any) -> tuple[Exchange, list[Piece]]:
        assert self._second is not None
        pieces = self._pieces(samples)
        self.exchange.begin(backwards=len(pieces))
        self._second.begin()
        return self._second, pieces

    def _finish_second(self, second: Exchange) -> list[Tensor]:
        self.exchange.finish()
        second.finish()
        return [s.grad for s in self._sums if s.grad is not None]


@torch.no_grad()
def _add(places: Sequence[Tensor], found: Sequence[Tensor | None], times: float = 1.0) -> None:
    """To the gradients of places, what was found of them. What was found may be of several places."""
    for place, value in zip(places, found, strict=True):
        if value is not None:
            own = value if times == 1.0 else value * times
            place.grad = own if place.grad is None else place.grad + own


def _given(batch: Batch) -> Batch:
    return batch


def _parts(batch: Batch, parts: int | None) -> list[Any]:
    return batch.split(len(batch) if parts is None else parts)
