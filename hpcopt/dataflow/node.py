"""What every node of a network promises.

Each message that leaves a node forward is answered by exactly one message backward, of the same state, with a gradient
(or None) for each of its values. A node answers a message when everything that it sent on because of it was answered;
so when an instance's first messages are answered, nothing of it is left anywhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from hpcopt.dataflow.message import Hop, Message


class Node(ABC):
    """A node, with what it remembers of the messages that passed.

    Attributes:
        name: unique in its graph, once it stands in one.
        inputs, outputs: ports that it has.
    """

    name = ""
    inputs = 1
    outputs = 1

    @abstractmethod
    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        """Take a message that came in by an input port; give what leaves because of it."""

    @abstractmethod
    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        """Take the answer to a message that left by an output port; give what leaves because of it."""

    @property
    def remembered(self) -> int:
        """Messages that the node still waits for, or owes an answer; 0 when nothing is under way."""
        return 0
