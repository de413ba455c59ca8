"""Nodes that compute: a function of a message's values, with parameters or without, and the loss."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.dataflow.control import Concat, require_new
from hpcopt.dataflow.message import Hop, Message, Payload, State, ahead, back
from hpcopt.dataflow.node import Node

Function = Callable[..., Any]  # of tensors, to a tensor or a tuple of them


class Applied:
    """A function's values, and what is needed to differentiate them.

    Attributes:
        inputs: leaves.
        outputs: what the function made of them.
    """

    def __init__(self, function: Function, payload: Payload) -> None:
        self.inputs = tuple(None if x is None else _leaf(x) for x in payload)
        outputs = function(*self.inputs)
        self.outputs: tuple[Tensor, ...] = outputs if isinstance(outputs, tuple) else (outputs,)

    def answer(self, gradients: Payload) -> Payload:
        """Gradients of the inputs; those of the parameters are added to their ``grad``."""
        pairs = [(y, g) for y, g in zip(self.outputs, gradients, strict=True) if g is not None and y.requires_grad]
        if pairs:
            torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
        return tuple(None if x is None else x.grad for x in self.inputs)


class Transform(Node):
    """Applies a function, such as a module, to the values of each message.

    With parameters the node has gradients: those of an instance are whole when all messages that it had here are
    answered. Then ``whole`` is called, and parameters may move; a message that is under way meanwhile is stale. It is
    answered by the derivative at the parameters as they are, at the inputs that it had.

    Attributes:
        function, module: what is applied, and whose parameters it uses.
        parameters: that get gradients.
        whole: of an instance's number: takes the gradients; says whether parameters moved.
        updates: how often they have.
        staleness: how many messages were answered after so many updates since they came.
    """

    def __init__(self, function: Function, module: nn.Module | None = None, *, asks_state: bool = False) -> None:
        """Apply a function that uses the parameters of ``module``; by default its own, if it is a module itself. With
        ``asks_state`` the function gets the state before the values.
        """
        self.function, self._asks_state = function, asks_state
        self.module = function if module is None and isinstance(function, nn.Module) else module
        self.parameters = [] if self.module is None else [p for p in self.module.parameters() if p.requires_grad]
        self.whole: Callable[[int], bool] = lambda instance: False
        self.updates = 0
        self.staleness = Counter[int]()
        self._kept: dict[State, tuple[State, Applied, int]] = {}
        self._open = Counter[int]()  # messages of each instance that are not answered

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        state = message.state
        require_new(self, state, self._kept)
        applied = self._apply(state, message.payload)
        self._kept[state] = state, applied, self.updates
        self._open[state.instance] += 1
        return (ahead(0, state, tuple(y.detach() for y in applied.outputs)),)

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        state, applied, then = self._kept.pop(message.state)  # an answer that came from afar has no shape
        if then != self.updates:
            applied = self._apply(state, applied.inputs)
        answer = applied.answer(message.payload)
        if self.parameters:
            self.staleness[self.updates - then] += 1
        self._open[state.instance] -= 1
        if not self._open[state.instance]:
            del self._open[state.instance]
            if self.parameters and self.whole(state.instance):
                self.updates += 1
        return (back(0, state, answer),)

    def _apply(self, state: State, payload: Payload) -> Applied:
        function = self.function
        return Applied((lambda *values: function(state, *values)) if self._asks_state else function, payload)

    @property
    def remembered(self) -> int:
        return len(self._kept)


class Loss(Node):
    """The loss of an instance: of the network's outputs, which come in by port 0, and its target, by port 1.

    The outputs are answered by their gradients; the target, which has none, by the loss.
    """

    inputs, outputs = 2, 0

    def __init__(self, criterion: Function) -> None:
        self._criterion = criterion
        self._pair = Concat([lambda state: state.instance] * 2)

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        if message.state.at:
            raise RuntimeError(f"an instance has one loss, at (), and not at {message.state.at}")
        for joined in self._pair.forward(port, message):
            applied = Applied(self._criterion, joined.message.payload)
            (loss,) = applied.outputs
            gradients = applied.answer((torch.ones_like(loss),))
            outputs, target = self._pair.backward(0, Message(joined.message.state, gradients))
            return (outputs, back(1, target.message.state, (loss.detach(),)))
        return ()

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        raise RuntimeError("nothing follows a loss")

    @property
    def remembered(self) -> int:
        return self._pair.remembered


def _leaf(x: Tensor) -> Tensor:
    x = x.detach()
    return x.requires_grad_() if x.is_floating_point() else x
