"""A small graph with a known structure, as shards: communities whose nodes share words and are joined to each other."""

from pathlib import Path

import numpy as np

from hpcopt.prepare.dataset import write_whole
from hpcopt.prepare.graph import graph

CLASSES = 3


def write_graph(folder: Path, nodes: int = 90, seed: int = 0) -> Path:
    """Write it: three communities, some words of a node its community's own, edges mostly within; give the folder."""
    draw = np.random.default_rng(seed)
    labels = np.arange(nodes) % CLASSES
    own = [[f"of{label}x{word}" for word in draw.integers(0, 6, 2)] for label in labels]
    words = [[*mine, *(f"any{word}" for word in draw.integers(0, 20, 4))] for mine in own]
    ends = draw.integers(0, nodes, (nodes * 4, 2))
    within = ends - (ends[:, 1:] - ends[:, :1]) % CLASSES * np.array([0, 1])  # the other end, of the first one's label
    edges = np.where(draw.random((len(ends), 1)) < 0.8, within % nodes, ends)
    data = graph(words, labels, edges, list(range(nodes)), [f"class {k}" for k in range(CLASSES)], source="a test")
    write_whole(folder, data, lambda: False)
    return folder
