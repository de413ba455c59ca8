"""A tree (``hpcopt.store.tree``) <-> bytes in memory: its document, then the values of its leaves."""

import json
from typing import Any

import numpy as np

from hpcopt.store.tree import Leaf, as_bytes, empty, memory, pack, unpack

COUNT_BYTES = 8


def to_bytes(tree: Any) -> np.ndarray:
    """A copy of a tree as uint8, shape (n,).

    Raises:
        CheckpointError: something in the tree is not what a checkpoint takes.
    """
    packed = pack(tree)
    leaves = [as_bytes(leaf) for leaf in packed.leaves]
    out = np.empty(COUNT_BYTES + len(packed.document) + sum(map(len, leaves)), np.uint8)
    room = out.data
    parts: list[bytes | memoryview] = [len(packed.document).to_bytes(COUNT_BYTES, "little"), packed.document, *leaves]
    for part in parts:
        room[: len(part)] = part
        room = room[len(part) :]
    return out


def from_bytes(values: np.ndarray) -> Any:
    """The tree of ``to_bytes``, with leaves of its own."""
    room = values.data
    count = int.from_bytes(room[:COUNT_BYTES], "little")
    document = json.loads(bytes(room[COUNT_BYTES : COUNT_BYTES + count]))
    room, leaves = room[COUNT_BYTES + count :], []
    for row in document["arrays"]:
        leaf = empty(Leaf(*row))
        place = memory(leaf)
        place[:] = room[: len(place)]
        room = room[len(place) :]
        leaves.append(leaf)
    return unpack(document["tree"], leaves)
