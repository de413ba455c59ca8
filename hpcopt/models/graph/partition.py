"""A graph's nodes in parts of about equal size with few edges between them.

``greedy`` is this package's own (``hpcopt.kernels.neighbours.greedy_parts``): nodes in breadth-first order go,
one after the other, where most of their neighbours are, and are dealt out so four times. ``metis`` asks pymetis, if it
is there.
"""

from typing import Literal

import numpy as np

from hpcopt.errors import JobError

Method = Literal["greedy", "metis"]
PASSES = 4


def partition(indptr: np.ndarray, indices: np.ndarray, parts: int, method: Method = "greedy") -> np.ndarray:
    """The part of each node, shape (n,), int64, a function of the graph alone.

    Raises:
        JobError: there are more parts than nodes, or pymetis is not installed.
    """
    nodes = len(indptr) - 1
    if parts > nodes:
        raise JobError(f"a graph of {nodes} nodes cannot be cut into {parts} parts: ask for fewer").everywhere()
    if parts == 1:
        return np.zeros(nodes, np.int64)
    if method == "greedy":
        from hpcopt.kernels.neighbours import greedy_parts

        of: np.ndarray = greedy_parts(indptr, indices, breadth_first(indptr, indices), parts, PASSES)
        return of
    try:
        import pymetis
    except ImportError as cause:
        raise JobError(f'partition = "metis" needs pymetis ({cause}): pip install pymetis, or "greedy"') from cause
    return np.asarray(pymetis.part_graph(parts, xadj=indptr, adjncy=indices)[1], np.int64)


def breadth_first(indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """All nodes, (n,), in the order in which they are reached from the first node of each component."""
    order, seen = [], np.zeros(len(indptr) - 1, bool)
    for start in range(len(seen)):
        if seen[start]:
            continue
        seen[start] = True
        front = np.array([start])
        while len(front):
            order.append(front)
            reached = np.concatenate([indices[indptr[i] : indptr[i + 1]] for i in front])
            front = np.unique(reached[~seen[reached]])
            seen[front] = True
    return np.concatenate(order)
