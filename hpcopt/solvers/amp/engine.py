"""A rank's nodes at work: messages to them wait in two queues, and answers go first."""

from collections import deque
from collections.abc import Iterable, Sequence

from hpcopt.comm.world import World
from hpcopt.dataflow.graph import Graph
from hpcopt.dataflow.message import Hop, Message
from hpcopt.solvers.amp.post import Kind, Letter, Post

Turn = tuple[int, int, Message]  # a node, its port, and what came there


class Engine:
    """Hands messages from node to node, on this rank and to others.

    Answers, which free what nodes keep and move parameters, go before what comes forward. The latest answer is first,
    as autograd goes; what comes forward is in order. On one rank the whole is therefore a function of its inputs; over
    ranks the order in which messages arrive is nobody's to say, unless one instance is in flight at a time.

    Attributes:
        longest: queue so far.
    """

    def __init__(self, graph: Graph, owners: Sequence[int], world: World, post: Post) -> None:
        """``owners`` are the ranks that nodes stand on."""
        self._graph, self._owners, self._rank, self._post = graph, owners, world.rank, post
        self._alone = world.size == 1
        self._forward: deque[Turn] = deque()
        self._backward: list[Turn] = []
        self.longest = 0

    def put(self, number: int, hops: Iterable[Hop]) -> None:
        """Let what leaves a node go where its wires lead."""
        graph = self._graph
        for hop in hops:
            to, port = (graph.previous if hop.backward else graph.next)[number, hop.port]
            if self._owners[to] == self._rank:
                self._queue(hop.backward, (to, port, hop.message))
            else:
                kind = Kind.BACKWARD if hop.backward else Kind.FORWARD
                self._post.send(self._owners[to], Letter(kind, to, port, hop.message))

    def receive(self, *, wait: bool) -> Kind | None:
        """Take all letters that have come; ``wait`` for one, if there is nothing to do. Gives the kind of one that is
        not for a node: those behind it are left.
        """
        if self._alone:
            if wait and not self.busy:
                raise RuntimeError("an instance is in flight, and no message: its network loses one")
            return None
        while (letter := self._post.take(wait=wait and not self.busy)) is not None:
            if letter.kind > Kind.BACKWARD:
                return letter.kind
            self._queue(letter.kind is Kind.BACKWARD, (letter.node, letter.port, letter.message))
        return None

    def turn(self) -> None:
        """Let a node take one message, if there is one."""
        if self._backward:
            node, port, message = self._backward.pop()
            self.put(node, self._graph.nodes[node].backward(port, message))
        elif self._forward:
            node, port, message = self._forward.popleft()
            self.put(node, self._graph.nodes[node].forward(port, message))

    @property
    def busy(self) -> bool:
        """Whether a message waits for a node."""
        return bool(self._forward or self._backward)

    def _queue(self, backward: bool, turn: Turn) -> None:
        (self._backward if backward else self._forward).append(turn)
        self.longest = max(self.longest, len(self._forward) + len(self._backward))
