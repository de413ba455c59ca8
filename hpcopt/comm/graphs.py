"""Who sends to whom in a round of gossip: graphs on P ranks, some of which change from step to step.

A graph is a function of the step that gives each rank's out-neighbours; it is the same on all ranks, so that a receiver
knows its senders without asking. With one rank, nobody sends.

- ``ring``: to the next rank and the one before. Undirected.
- ``exponential``: at step k to the rank ``2^(k mod L)`` further on, ``L = ceil(log2 P)``: one peer at a time. For P a
  power of two, L rounds average exactly (Assran et al. 2019, arXiv:1811.10792, appendix A).
- ``random``: at each step one peer, along a random cycle through all ranks.
- a file: one edge a line, ``source target``, both in 0 ... P - 1; ``#`` begins a comment.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hpcopt.errors import JobError
from hpcopt.seeds import EVERY_RANK, derive

Edges = Sequence[Sequence[int]]  # out-neighbours of every rank
Graph = Callable[[int], Edges]


def ring(size: int) -> Graph:
    """Both neighbours."""
    edges = [sorted({(rank + 1) % size, (rank - 1) % size} - {rank}) for rank in range(size)]
    return lambda _step: edges


def exponential(size: int) -> Graph:
    """One peer, at distance 1, 2, 4, ..., in turn."""
    rounds = max(1, (size - 1).bit_length())

    def at(step: int) -> Edges:
        distance = 1 << step % rounds
        return [[(rank + distance) % size] if size > 1 else [] for rank in range(size)]

    return at


def random(size: int, seed: int) -> Graph:
    """One peer, along a cycle drawn for each step."""

    def at(step: int) -> Edges:
        order = np.random.default_rng(derive(seed, step, EVERY_RANK, "gossip")).permutation(size).tolist()
        edges: list[list[int]] = [[] for _ in range(size)]
        for here, there in zip(order, order[1:] + order[:1], strict=True):
            if here != there:
                edges[here].append(there)
        return edges

    return at


def from_file(path: Path, size: int) -> Graph:
    """A fixed graph.

    Raises:
        JobError: the file cannot be read, names ranks that do not exist, or leaves ranks that no path joins.
    """
    edges: list[set[int]] = [set() for _ in range(size)]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = [tuple(map(int, line.split("#")[0].split())) for line in lines if line.split("#")[0].strip()]
    except OSError as error:
        raise JobError(f"cannot read the graph {path}: {error.strerror}") from None
    except ValueError as error:
        raise JobError(f"{path}: one edge a line, source and target: {error}") from None
    for pair in pairs:
        if len(pair) != 2 or not all(0 <= rank < size for rank in pair):
            raise JobError(f"{path}: {pair} is not an edge between ranks 0 to {size - 1}")
        edges[pair[0]].add(pair[1])
    lists = [sorted(targets - {rank}) for rank, targets in enumerate(edges)]
    if not strongly_connected(lists):
        raise JobError(f"{path}: some rank cannot be reached from another, so the ranks would never agree")
    return lambda _step: lists


def sources(edges: Edges, rank: int) -> list[int]:
    """Who sends to a rank, in rank order."""
    return [source for source, targets in enumerate(edges) if rank in targets]


def strongly_connected(edges: Edges) -> bool:
    """Whether every rank can be reached from every other."""

    def reaches_all(out: Edges) -> bool:
        seen, frontier = {0}, [0]
        while frontier:
            new = set(out[frontier.pop()]) - seen
            seen |= new
            frontier += new
        return len(seen) == len(out)

    return reaches_all(edges) and reaches_all([sources(edges, rank) for rank in range(len(edges))])


def metropolis(edges: Edges, rank: int) -> dict[int, float]:
    """Weights of a rank's neighbours that make mixing doubly stochastic on an undirected graph: ``1 / (1 + max(d_i,
    d_j))`` (Xiao et al. 2006, doi:10.1016/j.jpdc.2006.08.010); the rest is its own.

    Raises:
        JobError: an edge has no way back.
    """
    for neighbour in edges[rank]:
        if rank not in edges[neighbour]:
            raise JobError(f"this mixing needs an undirected graph: {rank} sends to {neighbour} and not back")
    return {j: 1 / (1 + max(len(edges[rank]), len(edges[j]))) for j in edges[rank]}
