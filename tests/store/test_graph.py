"""A graph in shards: what is read is what was written, and a damaged one is refused by what is wrong with it."""

import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.store.graph import PARTS, StoredGraph
from hpcopt.store.shards import write_shards

NODES = {
    "features": np.array([[1, 0], [0, 2], [3, 3], [0, 0]], np.uint8),
    "label": np.array([0, 1, 1, 0], np.uint8),
    "part": np.array([0, 0, 2, 3], np.uint8),
    "first_edge": np.array([0, 2, 3, 4]),
}
NEIGHBOURS = np.array([1, 2, 0, 0], np.int32)  # 0-1, 0-2, and node 3 by itself


def written(folder, neighbours=NEIGHBOURS, classes=("a", "b"), **nodes):
    attributes = {"classes": list(classes)} if classes else {}
    write_shards(folder, "nodes", {**NODES, **nodes}, rows_per_shard=3, attributes=attributes)
    write_shards(folder, "edges", {"neighbour": neighbours}, rows_per_shard=3, attributes={})
    return folder


def test_what_is_read_was_written(tmp_path):
    graph = StoredGraph(written(tmp_path))
    np.testing.assert_array_equal(graph.indptr, [0, 2, 3, 4, 4])
    np.testing.assert_array_equal(graph.indices, NEIGHBOURS)
    np.testing.assert_array_equal(graph.features, NODES["features"])
    assert graph.classes == ["a", "b"]
    np.testing.assert_array_equal(graph.nodes_of("train"), [0, 1])
    np.testing.assert_array_equal(graph.nodes_of("test"), [2])
    graph.verify(0, 1)


def test_a_graph_without_edges(tmp_path):
    graph = StoredGraph(written(tmp_path, NEIGHBOURS[:0], first_edge=np.zeros(4, np.int64)))
    np.testing.assert_array_equal(graph.indptr, np.zeros(5))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"neighbours": np.array([1, 9, 0, 0], np.int32)}, "`neighbour` has 0 to 9, and there are 4 nodes"),
        ({"neighbours": np.array([1, -1, 0, 0], np.int32)}, "`neighbour` has -1"),
        ({"neighbours": np.array([2, 1, 0, 0], np.int32)}, "should ascend"),
        ({"neighbours": np.array([0, 1, 0, 0], np.int32)}, "not be the node itself"),
        ({"neighbours": np.array([1, 3, 0, 0], np.int32)}, "one direction only"),
        ({"neighbours": np.array([1.0, 2, 0, 0])}, "integers `neighbour` in 0 dimensions: it is float64"),
        ({"first_edge": np.array([0, 3, 2, 4])}, "never fall"),
        ({"first_edge": np.array([1, 2, 3, 4])}, "begin at 0"),
        ({"first_edge": np.array([0, 2, 3, 9])}, "nor pass the last edge"),
        ({"label": np.array([0, 1, 2, 0])}, "`label` has 0 to 2, and there are 2 classes"),
        ({"part": np.array([0, 0, 2, 7], np.uint8)}, "`part` has 7"),
        ({"part": np.array([2, 2, 2, 3], np.uint8)}, "no nodes to train on"),
        ({"features": np.ones((4, 2, 2), np.uint8)}, "`features` in 1 dimensions"),
        ({"classes": None}, "no list of classes"),
    ],
)
def test_a_damaged_graph_is_refused(tmp_path, damage, complaint):
    with pytest.raises(DataError, match=complaint.replace("(", r"\(")):
        StoredGraph(written(tmp_path, **damage))


def test_a_changed_byte_is_found(tmp_path):
    path = written(tmp_path) / "edges-00001.h5"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"checksum|damaged|direction|range|neighbour"):
        StoredGraph(tmp_path).verify(0, 1)


def test_parts_are_what_the_files_say():
    assert PARTS == {"train": 0, "validation": 1, "test": 2, "none": 3}
