"""A graph as shards: ``nodes-*.h5`` and ``edges-*.h5``, an adjacency in compressed rows with features and labels.

A row of the nodes has ``features``, ``label``, ``part`` and ``first_edge``, where its neighbours begin among the rows
of the edges; these hold ``neighbour``, ascending for each node. Every edge stands there in both directions.
"""

from pathlib import Path

import numpy as np

from hpcopt.errors import DataError
from hpcopt.store.shards import Shards

PARTS = {"train": 0, "validation": 1, "test": 2, "none": 3}
SPLITS = ("nodes", "edges")
_NODES = {"features": (1, "u"), "label": (0, "ui"), "part": (0, "ui"), "first_edge": (0, "ui")}


class StoredGraph:
    """A graph of n nodes and e directed edges, read into memory.

    Attributes:
        indptr: where each node's neighbours begin and the last one's end, shape (n + 1,), int64.
        indices: the neighbours, (e,), int64.
        features: (n, f), uint8.
        labels: (n,), int64; of nodes that are in no part without meaning.
        parts: (n,), uint8, see ``PARTS``.
        classes: their names.
    """

    def __init__(self, folder: Path) -> None:
        """Read it.

        Raises:
            DataError: there is none, or it is damaged: what it holds is no undirected graph, or a label, a part or a
                neighbour is out of range.
        """
        self._shards = {split: Shards(folder, split) for split in SPLITS}
        nodes, edges = (self._shards[split] for split in SPLITS)
        self._folder = folder
        self._require_fields(nodes, _NODES)
        self._require_fields(edges, {"neighbour": (0, "ui")})
        rows = nodes.rows(np.arange(len(nodes)))
        self.features, self.parts = rows["features"], rows["part"].astype(np.uint8)
        self.labels = rows["label"].astype(np.int64)
        self.indices = edges.rows(np.arange(len(edges)))["neighbour"].astype(np.int64)
        self.indptr = np.append(rows["first_edge"], len(edges)).astype(np.int64)
        self.classes: list[str] = nodes.attributes.get("classes", [])
        self._require_labels()
        self._require_graph()

    def verify(self, rank: int, size: int) -> None:
        """Compare this rank's share of the files with their checksums.

        Raises:
            DataError: one does not match.
        """
        for shards in self._shards.values():
            shards.verify(rank, size)

    def nodes_of(self, part: str) -> np.ndarray:
        """The nodes of a part, ascending, int64."""
        return np.flatnonzero(self.parts == PARTS[part])

    def _require_fields(self, shards: Shards, wanted: dict[str, tuple[int, str]]) -> None:
        for name, (dims, kinds) in wanted.items():
            field = shards.fields.get(name)
            if field is None or len(field.shape) != dims or field.dtype.kind not in kinds:
                found = "there is none" if field is None else f"it is {field.dtype} of shape {field.shape}"
                self._refuse(f"a row of its {shards.split} should have integers `{name}` in {dims} dimensions: {found}")

    def _require_labels(self) -> None:
        if not isinstance(self.classes, list) or not self.classes:
            self._refuse("it has no list of classes")
        if (self.parts > max(PARTS.values())).any():
            self._refuse(f"`part` has {self.parts.max()}, and there are {PARTS}")
        known = self.labels[self.parts != PARTS["none"]]
        if known.size and (known.min() < 0 or known.max() >= len(self.classes)):
            self._refuse(f"`label` has {known.min()} to {known.max()}, and there are {len(self.classes)} classes")
        for part in ("train", "test"):
            if not len(self.nodes_of(part)):
                self._refuse(f"it has no nodes to {part} on")

    def _require_graph(self) -> None:
        """Rows in order, neighbours in range, each once, none the node itself, every edge in both directions."""
        nodes, counts = len(self.labels), np.diff(self.indptr)
        if self.indptr[0] != 0 or (counts < 0).any():
            self._refuse("`first_edge` should begin at 0, and never fall nor pass the last edge")
        if self.indices.size and (self.indices.min() < 0 or self.indices.max() >= nodes):
            self._refuse(f"`neighbour` has {self.indices.min()} to {self.indices.max()}, and there are {nodes} nodes")
        sources = np.repeat(np.arange(nodes), counts)
        there, back = sources * nodes + self.indices, self.indices * nodes + sources
        if (np.diff(there) <= 0).any() or (sources == self.indices).any():
            self._refuse("a node's neighbours should ascend, and not be the node itself")
        if not np.array_equal(there, np.sort(back)):
            self._refuse("an edge stands there in one direction only")

    def _refuse(self, what: str) -> None:
        raise DataError(
            f"{self._folder} is no graph that can be trained on: {what}. Make it again with `python -m hpcopt.prepare "
            f"{self._folder.name} --data-dir {self._folder.parent} --force`"
        )
