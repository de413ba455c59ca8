"""Which rank each node stands on."""

from collections import deque
from collections.abc import Mapping

from hpcopt.dataflow.graph import Graph
from hpcopt.errors import JobError
from hpcopt.pipeline.cut import dealt


def place(graph: Graph, size: int, wanted: Mapping[str, int]) -> list[int]:
    """The ranks of all nodes.

    Each replica has ranks of its own, as many as the others. Over these its nodes with parameters are dealt in the
    order of the network, each rank with about as many parameters; every other node stands beside the node with
    parameters that its messages come to next.

    Args:
        graph: the network.
        size: ranks.
        wanted: instead, ranks of nodes by name, among those of the replica.

    Raises:
        JobError: ranks and replicas do not go together, or a name or a rank is not there.
    """
    if size % graph.replicas:
        raise JobError(f"{size} ranks cannot be shared by [solver] replicas = {graph.replicas}").everywhere()
    each = size // graph.replicas
    transforms = graph.transforms()
    names = {graph.nodes[number].name for number in transforms if graph.copies[number] == 0}
    for name, rank in wanted.items():
        if name not in names or not 0 <= rank < each:
            raise JobError(
                f"[solver.place] {name} = {rank}: nodes are {', '.join(sorted(names))}, and ranks 0 to {each - 1}"
            ).everywhere()
    found: dict[int, int] = {0: 0}
    for copy in range(graph.replicas):
        own = [number for number in transforms if graph.copies[number] == copy]
        weights = [sum(p.numel() for p in transforms[number].parameters) for number in own]
        for number, rank in zip(own, dealt(weights, each), strict=True):
            found[number] = copy * each + wanted.get(first_name(graph.nodes[number].name), rank)
    return [_beside(graph, number, found) for number in range(len(graph.nodes))]


def first_name(name: str) -> str:
    """The name that a replica's node has in the first replica."""
    stem, _, count = name.rpartition(".")
    return stem if count.isdigit() and stem else name


def _beside(graph: Graph, number: int, found: Mapping[int, int]) -> int:
    """The rank of a node: its own, or that of the nearest placed one downstream, or else upstream."""
    for ways in (graph.next, graph.previous):
        seen, ahead = {number}, deque([number])
        while ahead:
            node = ahead.popleft()
            if node in found and (node or not number):
                return found[node]
            ports = range(graph.nodes[node].outputs if ways is graph.next else graph.nodes[node].inputs)
            for there, _ in (ways[node, port] for port in ports):
                if there not in seen:
                    seen.add(there)
                    ahead.append(there)
    return 0
