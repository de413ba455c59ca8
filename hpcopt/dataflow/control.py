"""Nodes that route, join and copy messages, and compute nothing."""

from abc import abstractmethod
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any

from torch import Tensor

from hpcopt.dataflow.message import Hop, Message, Payload, State, ahead, back
from hpcopt.dataflow.node import Node

Key = Callable[[State], Hashable]


class Cond(Node):
    """Sends each message on by the output port that its state chooses."""

    def __init__(self, choose: Callable[[State], int], outputs: int = 2) -> None:
        self._choose, self.outputs = choose, outputs

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        return (Hop(False, self._choose(message.state), message),)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        return (Hop(True, 0, message),)


class Phi(Node):
    """Joins branches: what came in by any port leaves by one, and its answer goes where it came from."""

    def __init__(self, inputs: int = 2) -> None:
        self.inputs = inputs
        self._origins: dict[State, int] = {}

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        require_new(self, message.state, self._origins)
        self._origins[message.state] = port
        return (Hop(False, 0, message),)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        return (Hop(True, self._origins.pop(message.state), message),)

    @property
    def remembered(self) -> int:
        return len(self._origins)


class Isu(Node):
    """Updates the state, by a function from it to the new place; an answer gets the old one back."""

    def __init__(self, move: Callable[[State], tuple[int, ...]]) -> None:
        self._move = move
        self._before: dict[State, State] = {}

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        state = message.state.moved(self._move(message.state))
        require_new(self, state, self._before)
        self._before[state] = message.state
        return (ahead(0, state, message.payload),)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        return (back(0, self._before.pop(message.state), message.payload),)

    @property
    def remembered(self) -> int:
        return len(self._before)


class FanOut(Node):
    """Sends something by each output for every message, and answers once all of it is answered."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs
        self._answers: dict[State, dict[int, Payload]] = {}

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        require_new(self, message.state, self._answers)
        self._answers[message.state] = {}
        return self._sent(message)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        answers = self._answers[message.state]
        answers[port] = message.payload
        if len(answers) < self.outputs:
            return ()
        del self._answers[message.state]
        return (back(0, message.state, self._answer([answers[out] for out in range(self.outputs)])),)

    @abstractmethod
    def _sent(self, message: Message) -> Sequence[Hop]:
        """What leaves by the outputs."""

    @abstractmethod
    def _answer(self, answers: Sequence[Payload]) -> Payload:
        """The answer to the message, from those to what was sent, by output."""

    @property
    def remembered(self) -> int:
        return len(self._answers)


class Bcast(FanOut):
    """Sends copies to all outputs, and answers with the sum of their gradients."""

    def _sent(self, message: Message) -> Sequence[Hop]:
        return [Hop(False, out, message) for out in range(self.outputs)]

    def _answer(self, answers: Sequence[Payload]) -> Payload:
        values = zip(*reversed(answers), strict=True)  # as autograd adds them
        return tuple(total(gradients) for gradients in values)


class Concat(Node):
    """Waits for one message from each input, and makes one of their values.

    Messages belong together whose keys are equal; the one that leaves has the state of the input ``lead``.
    """

    def __init__(self, keys: Sequence[Key], lead: int = 0) -> None:
        """``keys`` are of each input."""
        self.inputs, self._keys, self._lead = len(keys), keys, lead
        self._waiting: dict[Hashable, dict[int, Message]] = {}
        self._joined: dict[State, list[tuple[State, int]]] = {}

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        key = self._keys[port](message.state)
        waiting = self._waiting.setdefault(key, {})
        require_new(self, port, waiting)
        waiting[port] = message
        if len(waiting) < self.inputs:
            return ()
        del self._waiting[key]
        parts = [waiting[port] for port in range(self.inputs)]
        state = parts[self._lead].state
        require_new(self, state, self._joined)
        self._joined[state] = [(part.state, len(part.payload)) for part in parts]
        return (ahead(0, state, tuple(x for part in parts for x in part.payload)),)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        hops, first = [], 0
        for port, (state, count) in enumerate(self._joined.pop(message.state)):
            hops.append(back(port, state, message.payload[first : first + count]))
            first += count
        return hops

    @property
    def remembered(self) -> int:
        return len(self._waiting) + len(self._joined)


class Split(FanOut):
    """Sends each of a message's values by an output of its own."""

    def _sent(self, message: Message) -> Sequence[Hop]:
        return [ahead(out, message.state, (x,)) for out, x in enumerate(message.payload)]

    def _answer(self, answers: Sequence[Payload]) -> Payload:
        return tuple(gradient for (gradient,) in answers)


class Drop(Node):
    """Takes what nobody wants, and answers at once that it has no gradient."""

    outputs = 0

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        return (back(0, message.state, (None,) * len(message.payload)),)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        raise RuntimeError("nothing follows what was dropped")


def itself(state: State) -> Hashable:
    """The key of messages that belong together if they are of one state."""
    return state


def require_new(node: Node, state: Hashable, known: Container[Any]) -> None:
    """Raise RuntimeError if a message of this state is at the node already: its network mixes up two of them."""
    if state in known:
        raise RuntimeError(f"two messages of {state} at node {node.name!r}")


def total(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of those that there are."""
    there = [g for g in gradients if g is not None]
    if not there:
        return None
    result = there[0]
    for gradient in there[1:]:
        result = result + gradient
    return result
