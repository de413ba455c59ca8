"""Nodes that make many messages of one, and one of many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.dataflow.control import require_new
from hpcopt.dataflow.message import Hop, Message, Payload, State, ahead, back
from hpcopt.dataflow.node import Node
from hpcopt.dataflow.transform import Applied

Place = tuple[int, ...]


@dataclass
class _Cut:
    """A message that was cut into rows."""

    state: State
    rows: Tensor
    answers: dict[State, Tensor | None]
    expected: int


class Ungroup(Node):
    """Sends each row of a value by output 0, at (*at, t, n) for row t of n; and by output 1, at (*at, 0,
    n), an empty message that begins a loop over them.
    """

    outputs = 2

    def __init__(self) -> None:
        self._cuts: dict[State, _Cut] = {}

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        (rows,) = message.payload
        assert rows is not None
        state, n = message.state, len(rows)
        whole = state.moved(state.at)
        require_new(self, whole, self._cuts)
        self._cuts[whole] = _Cut(state, rows, {}, n + 1)
        hops = [ahead(0, state.moved((*state.at, t, n)), (rows[t],)) for t in range(n)]
        return [*hops, ahead(1, state.moved((*state.at, 0, n)), ())]

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        whole = message.state.moved(message.state.at[:-2])
        cut = self._cuts[whole]
        cut.expected -= 1
        if port == 0:
            cut.answers[message.state] = message.payload[0]
        if cut.expected:
            return ()
        del self._cuts[whole]
        n = len(cut.rows)
        gradients = [cut.answers[State(whole.instance, (*whole.at, t, n))] for t in range(n)]
        if all(gradient is None for gradient in gradients):
            return (back(0, cut.state, (None,)),)
        zeros = torch.zeros_like(cut.rows[0])
        return (back(0, cut.state, (torch.stack([zeros if g is None else g for g in gradients]),)),)

    @property
    def remembered(self) -> int:
        return len(self._cuts)


@dataclass
class _Spread:
    """A message that became many, by a function that can be differentiated."""

    state: State
    applied: Applied
    widths: dict[State, tuple[int, int]]
    answers: dict[int, Tensor | None]
    expected: int


class Flatmap(Node):
    """Sends, for each message, as many as a function gives: places in the instance, each with values.

    The function gets the state and the values; places may be any that no other message of the instance has here.
    """

    def __init__(self, function: Callable[..., Sequence[tuple[Place, tuple[Tensor, ...]]]]) -> None:
        self._function = function
        self._spreads: dict[State, _Spread] = {}  # by the state of each message that was sent
        self._open = 0

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        places: list[tuple[State, int]] = []

        def spread(*values: Tensor) -> tuple[Tensor, ...]:
            parts = self._function(message.state, *values)
            places.extend((message.state.moved(place), len(part)) for place, part in parts)
            return tuple(x for _, part in parts for x in part)

        applied = Applied(spread, message.payload)
        if not places:
            return (back(0, message.state, (None,) * len(message.payload)),)
        made, hops, first = _Spread(message.state, applied, {}, {}, len(places)), [], 0
        for state, count in places:
            require_new(self, state, self._spreads)
            self._spreads[state] = made
            made.widths[state] = (first, count)
            hops.append(ahead(0, state, tuple(x.detach() for x in applied.outputs[first : first + count])))
            first += count
        self._open += 1
        return hops

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        made = self._spreads.pop(message.state)
        first, _ = made.widths[message.state]
        made.answers.update(enumerate(message.payload, first))
        made.expected -= 1
        if made.expected:
            return ()
        self._open -= 1
        gradients = tuple(made.answers[index] for index in range(len(made.applied.outputs)))
        return (back(0, made.state, made.applied.answer(gradients)),)

    @property
    def remembered(self) -> int:
        return self._open


class Group(Node):
    """Waits for all messages of a group, and makes one of their rows, one below the other.

    Args:
        place: of the group that a message belongs to, in the instance.
        count: how many messages it has.
        order: sorts them.
    """

    def __init__(
        self, place: Callable[[State], Place], count: Callable[[State], int], order: Callable[[State], int]
    ) -> None:
        self._place, self._count, self._order = place, count, order
        self._waiting: dict[State, list[Message]] = {}
        self._members: dict[State, list[tuple[State, list[int]]]] = {}

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        group = message.state.moved(self._place(message.state))
        waiting = self._waiting.setdefault(group, [])
        waiting.append(message)
        if len(waiting) < self._count(message.state):
            return ()
        del self._waiting[group]
        require_new(self, group, self._members)
        waiting.sort(key=lambda member: self._order(member.state))
        payloads = [[x for x in member.payload if x is not None] for member in waiting]
        self._members[group] = [(m.state, [len(x) for x in p]) for m, p in zip(waiting, payloads, strict=True)]
        return (ahead(0, group, tuple(torch.cat(rows) for rows in zip(*payloads, strict=True))),)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        members = self._members.pop(message.state)
        columns: list[Payload] = []
        for value, gradient in enumerate(message.payload):
            rows = [counts[value] for _, counts in members]
            columns.append((None,) * len(rows) if gradient is None else torch.split(gradient, rows))
        parts = zip(*columns, strict=True)
        return [back(0, state, part) for (state, _), part in zip(members, parts, strict=True)]

    @property
    def remembered(self) -> int:
        return sum(map(len, self._waiting.values())) + len(self._members)
