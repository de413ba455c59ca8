"""What the sources of graphs share: words as features, edges as a compressed adjacency, and a split by groups.

Near-duplicates would carry answers from the training nodes to the others: nodes of one group, such as those with the
same words or packages built of one source, are all in the same part.
"""

import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hpcopt.errors import DataError
from hpcopt.prepare.dataset import DataSet
from hpcopt.store.graph import PARTS
from hpcopt.store.shards import About

FEATURES = 512
TRAIN, VALIDATION = 0.1, 0.1  # of the nodes; the others are to test on
SPLIT_SEED = 20261129
ROWS_PER_SHARD = 1 << 18


def hashed(words: Iterable[str], features: int = FEATURES) -> np.ndarray:
    """How often words fall into each of so many buckets, shape (features,), uint8; 255 stands for more.

    >>> hashed(["a", "b", "a"], 4)
    array([0, 1, 0, 2], dtype=uint8)
    """
    counts = np.bincount([zlib.crc32(word.encode()) % features for word in words], minlength=features)
    return np.minimum(counts, 255).astype(np.uint8)


def adjacency(nodes: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An undirected graph's neighbours in compressed rows.

    Args:
        nodes: how many, n.
        edges: pairs of nodes, shape (k, 2), in either direction, once or more; a node's edge to itself is left out.

    Returns:
        Where each node's neighbours begin, (n,), int64, and the neighbours, ascending, int32: each edge twice.
    """
    pairs = edges[edges[:, 0] != edges[:, 1]].astype(np.int64)
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]) @ np.array([nodes, 1]))
    degrees = np.bincount(both // nodes, minlength=nodes)
    return np.cumsum(degrees) - degrees, (both % nodes).astype(np.int32)


def split(groups: Sequence[Hashable], labelled: np.ndarray) -> np.ndarray:
    """The part of each node, shape (n,), uint8, as ``PARTS`` counts them: groups are drawn by a fixed seed.

    Args:
        groups: of each node: nodes of one group are in one part.
        labelled: shape (n,), bool; a node without a label is in no part.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of = np.array([numbers[group] for group in groups])
    drawn = np.random.default_rng(SPLIT_SEED).random(len(numbers))
    kind = np.where(
        drawn < TRAIN, PARTS["train"], np.where(drawn < TRAIN + VALIDATION, PARTS["validation"], PARTS["test"])
    )
    return np.where(labelled, kind[of], PARTS["none"]).astype(np.uint8)


def graph(
    words: Sequence[Iterable[str]],
    labels: np.ndarray,
    edges: np.ndarray,
    groups: Sequence[Hashable],
    classes: Sequence[str],
    **attributes: Any,
) -> DataSet:
    """The data set of a graph.

    Args:
        words: of each node.
        labels: class of each node, shape (n,); -1: it has none.
        edges: see ``adjacency``.
        groups: see ``split``.
        classes: their names.
        attributes: title, source, license and the like.

    Raises:
        DataError: a part has no nodes.
    """
    first, neighbours = adjacency(len(words), edges)
    parts = split(groups, labels >= 0)
    if not all((parts == PARTS[name]).any() for name in ("train", "validation", "test")):
        raise DataError(f"{attributes.get('source', 'the source')} has too few nodes to be split: {len(words)}")
    nodes = {
        "features": np.stack([hashed(each) for each in words]),
        "label": np.maximum(labels, 0).astype(np.uint8),
        "part": parts,
        "first_edge": first,
    }
    history = (
        f"{FEATURES} buckets of words by crc32; groups of near-duplicates drawn by numpy.random.default_rng("
        f"{SPLIT_SEED}), {TRAIN} of them to train, {VALIDATION} to validate"
    )
    arrays: Mapping[str, Mapping[str, np.ndarray]] = {"nodes": nodes, "edges": {"neighbour": neighbours}}
    return DataSet(arrays, {**attributes, "classes": list(classes), "history": history}, _ABOUT, ROWS_PER_SHARD)


_ABOUT = {
    "features": About("occurrences of the node's words in hashed buckets", "1", ("row", "bucket")),
    "label": About("class, an index into the file's classes", "1", ("row",)),
    "part": About(", ".join(f"{number}: {name}" for name, number in PARTS.items()), "1", ("row",)),
    "first_edge": About("row of the edges at which the node's neighbours begin", "1", ("row",)),
    "neighbour": About("a node at the other end of an edge, ascending for each node", "1", ("row",)),
}
