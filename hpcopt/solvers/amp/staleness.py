"""How stale the messages were that nodes answered, as a table of metrics.h5."""

import json
from collections.abc import Mapping, Sequence

from hpcopt.comm.world import World
from hpcopt.dataflow.transform import Transform
from hpcopt.shapes.stats import Columns


class StalenessTable:
    """For each node with parameters, how many messages it answered after how many updates of its since they came."""

    lasting = True

    def __init__(self, nodes: Sequence[Transform]) -> None:
        """``nodes`` are this rank's."""
        self._nodes = nodes

    def columns(self, world: World) -> Columns:
        """Columns node, staleness and messages, of all ranks' nodes. Collective."""
        mine = [(node.name, *counted) for node in self._nodes for counted in sorted(node.staleness.items())]
        everyones = world.gather_bytes(json.dumps(mine).encode())
        rows = [row for theirs in everyones for row in json.loads(theirs)]
        names, staleness, messages = zip(*rows, strict=True) if rows else ((), (), ())
        return {"node": list(names), "staleness": list(staleness), "messages": list(messages)}

    def attributes(self) -> Mapping[str, str]:
        return {"staleness": "updates of a node's parameters between a message and its answer"}

    def lines(self) -> Sequence[str]:
        return ()
