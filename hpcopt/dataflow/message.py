"""What travels between the nodes of a network: tensors, and the state that says what they are of."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

Payload = tuple[Tensor | None, ...]  # of an answer, None is a gradient that there is not


@dataclass(frozen=True, slots=True)
class State:
    """Which instance a message is of, and where in it. Two messages of one state never meet at a node.

    Attributes:
        instance: its running number.
        at: counters whose meaning the network decides: (t, n) in the t-th of n passes of a loop, a place in a tree.
        shape: what there is to know of the instance's graph, as integers, for the nodes that route by it.
    """

    instance: int
    at: tuple[int, ...] = ()
    shape: tuple[int, ...] = field(default=(), compare=False)

    def moved(self, at: tuple[int, ...]) -> "State":
        """The same instance at another place."""
        return State(self.instance, at, self.shape)


class Message(NamedTuple):
    """Values going forward; or, going backward, the answer to a message of this state: the gradients of its values."""

    state: State
    payload: Payload


class Hop(NamedTuple):
    """A message that leaves a node: backward by an input port, or forward by an output port."""

    backward: bool
    port: int
    message: Message


def ahead(port: int, state: State, payload: Payload) -> Hop:
    """A message forward."""
    return Hop(False, port, Message(state, payload))


def back(port: int, state: State, payload: Payload) -> Hop:
    """An answer."""
    return Hop(True, port, Message(state, payload))
