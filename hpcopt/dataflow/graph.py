"""The static graph of nodes that instances pass through, each in its own way."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from hpcopt.dataflow.control import Bcast, Concat, Cond, Drop, itself, require_new
from hpcopt.dataflow.instance import Instance
from hpcopt.dataflow.message import Hop, Message, Payload, State, ahead
from hpcopt.dataflow.node import Node
from hpcopt.dataflow.transform import Function, Loss, Transform
from hpcopt.errors import JobError

Take = Callable[[Instance], Payload]


class Wire(NamedTuple):
    """An output port of a node."""

    node: int
    port: int


@runtime_checkable
class Wired(Protocol):
    """A network that says itself how its nodes are wired."""

    def wire(self, graph: "Graph") -> Wire:
        """Add the network's nodes; give the wire of its outputs, which leave it at ()."""

    def graph_shape(self, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        """What nodes must know of an instance's graph, as integers: ``State.shape``."""


class Source(Node):
    """Where instances come in: a message by each output port. When all are answered, the instance has landed."""

    inputs = 0

    def __init__(self) -> None:
        self.outputs = 0
        self.takes: list[Take] = []
        self._open: dict[int, int] = {}
        self.landed: list[tuple[int, Payload]] = []

    def begin(self, number: int, shape: tuple[int, ...], instance: Instance) -> Sequence[Hop]:
        """Send an instance's first messages; the last port has its target."""
        require_new(self, number, self._open)
        self._open[number] = self.outputs
        state = State(number, (), shape)
        return [ahead(port, state, take(instance)) for port, take in enumerate(self.takes)]

    def forward(self, port: int, message: Message) -> Sequence[Hop]:
        raise RuntimeError("nothing comes before the source")

    def backward(self, port: int, message: Message) -> Sequence[Hop]:
        number = message.state.instance
        self._open[number] -= 1
        if port == self.outputs - 1:
            self.landed.append((number, message.payload))
        if not self._open[number]:
            del self._open[number]
        return ()

    @property
    def in_flight(self) -> int:
        """Instances that have not landed."""
        return len(self._open)

    @property
    def remembered(self) -> int:
        return len(self._open)


class Graph:
    """Nodes, and which output leads to which input. Made of one network or of several replicas of it.

    Attributes:
        nodes: the first is the source.
        copies: of which replica each node is; of those that all share, 0.
        next: the input port that each output port leads to, as (node, port).
        previous: the other way.
    """

    def __init__(self, replicas: int = 1) -> None:
        self.source = Source()
        self.source.name = "source"
        self.nodes: list[Node] = [self.source]
        self.copies, self.replicas = [0], replicas
        self.next: dict[tuple[int, int], tuple[int, int]] = {}
        self.previous: dict[tuple[int, int], tuple[int, int]] = {}
        self._copy, self._entries, self._taken = 0, list[int](), 0
        self._names = Counter[str]()
        self._ends: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def begin_copy(self, copy: int) -> None:
        """Let what is added from here on be of a replica."""
        self._copy, self._taken = copy, 0

    def entry(self, take: Take) -> Wire:
        """A wire on which each instance's part that ``take`` gives comes in at (), to the replica whose turn it is."""
        port = self._taken
        self._taken += 1
        if port == len(self._entries):
            self.source.takes.append(take)
            self.source.outputs += 1
            copies, self._copy = self._copy, 0
            turn = Cond(lambda state: state.instance % self.replicas, self.replicas)
            self._entries.append(self.add(turn, Wire(0, port), name="turn").node if self.replicas > 1 else 0)
            self._copy = copies
        return Wire(self._entries[port], self._copy) if self.replicas > 1 else Wire(0, port)

    def add(self, node: Node, *inputs: Wire, name: str = "") -> Wire:
        """Add a node with wires to its first inputs; give that of its first output."""
        number = len(self.nodes)
        name = name or type(node).__name__.lower()
        self._names[name] += 1
        seen = self._names[name]
        node.name = name if seen == 1 else f"{name}.{seen}"
        self.nodes.append(node)
        self.copies.append(self._copy)
        for port, wire in enumerate(inputs):
            self.connect(wire, number, port)
        return Wire(number, 0)

    def connect(self, wire: Wire, node: int, port: int) -> None:
        """Let a wire lead to an input, beside those that it leads to already. One that closes a loop is added so."""
        if (node, port) in self.previous:
            raise JobError(f"two wires lead to input {port} of node {self.nodes[node].name!r}")
        self._ends.setdefault(wire, []).append((node, port))
        self.previous[node, port] = wire

    def transform(
        self,
        name: str,
        function: Function,
        *inputs: Wire,
        module: nn.Module | None = None,
        asks_state: bool = False,
    ) -> Wire:
        """Add a node that computes, after all of its inputs have come if there are several."""
        node = Transform(function, module, asks_state=asks_state)
        return self.add(node, self.joined(*inputs), name=name)

    def joined(self, *wires: Wire) -> Wire:
        """One wire with the values of several, whose messages are of the same states."""
        return wires[0] if len(wires) == 1 else self.add(Concat([itself] * len(wires)), *wires)

    def loss(self, outputs: Wire, criterion: Function) -> None:
        """End the network, or this replica of it, with its loss."""
        self.add(Loss(criterion), outputs, self.entry(lambda instance: instance.target))

    def transforms(self) -> dict[int, Transform]:
        """The nodes with parameters, by number."""
        return {k: node for k, node in enumerate(self.nodes) if isinstance(node, Transform) and node.parameters}

    def finish(self, model: nn.Module) -> None:
        """Copy what several nodes want, and drop what none does; see that every parameter is of one node.

        Raises:
            JobError: it is not so, or an input has no wire.
        """
        for number, node in enumerate(list(self.nodes)):
            self._copy = self.copies[number]
            loose = [port for port in range(node.inputs) if (number, port) not in self.previous]
            if loose:
                raise JobError(f"nothing leads to input {loose[0]} of node {node.name!r}")
            for port in range(node.outputs):
                self._end(Wire(number, port))
        self._require_owners(model)

    def _end(self, wire: Wire) -> None:
        """Let a wire lead to one place."""
        ends = list(self._ends.get(wire, ()))
        if len(ends) == 1:
            self.next[wire] = ends[0]
            return
        number = self.add(Bcast(len(ends)) if ends else Drop(), wire).node
        self.next[wire] = (number, 0)
        for port, end in enumerate(ends):
            self.next[number, port] = end
            self.previous[end] = (number, port)

    def _require_owners(self, model: nn.Module) -> None:
        owners: dict[int, str] = {}
        for node in self.transforms().values():
            for p in node.parameters:
                if owners.setdefault(id(p), node.name) != node.name:
                    raise JobError(f"nodes {owners[id(p)]!r} and {node.name!r} share a parameter: make them one node")
        lost = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in owners]
        if lost:
            raise JobError(f"no node has the parameters {', '.join(lost)}")

    @property
    def remembered(self) -> int:
        """What all nodes remember together: 0 when nothing is under way."""
        return sum(node.remembered for node in self.nodes)
