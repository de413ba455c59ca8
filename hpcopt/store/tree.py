"""A tree of dicts, lists, tuples, tensors, arrays and numbers <-> one HDF5 file. Data only: reading it runs no code.

The file holds the tree as a JSON document, in which a tensor is a number into a table, and the values of all tensors of
one dtype as one contiguous array, so that thousands of small tensors cost no more than a few large ones. Values go to
their place in the file as plain bytes, past the locks of HDF5 and of the interpreter, so other threads run on. A CRC-32
over the document and all values is verified on load: it guards against accidents, not against an adversary, and costs
less than the disk, which a cryptographic sum does not. docs/reference/format.md describes the layout.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from isal.isal_zlib import crc32  # zlib's, several times as fast
from torch import Tensor

from hpcopt.errors import CheckpointError
from hpcopt.store import hdf5

SCHEMA_VERSION = 2
BUFFER_BYTES = 1 << 20
BLOCK_BYTES = 1 << 22  # read, and then checksummed out of the cache; the system reads ahead by what is asked for
REMEDY = "resume from another checkpoint, or start afresh with --fresh"

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
STORED_AS = {name: name for name in (*INTEGERS, "float16", "float32", "float64", "complex64", "complex128")}
# What HDF5 has no type for is stored as unsigned integers of the same width.
STORED_AS |= {"bool": "uint8", "bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


class Leaf(NamedTuple):
    """A tensor or array: its values are number first and on in the file's array of its dtype."""

    kind: str  # "tensor" or "array"
    dtype: str
    shape: Sequence[int]
    first: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Packed(NamedTuple):
    """A tree ready to be written: its document, and its leaves in the order of the table."""

    document: bytes
    table: Sequence[Leaf]
    leaves: Sequence[Tensor | np.ndarray]

    @property
    def sizes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the document, and the number of values of each dtype, in the order of the file."""
        last = {dtype: self.table[indices[-1]] for dtype, indices in by_dtype(self.table).items()}
        return len(self.document), {dtype: leaf.first + leaf.size for dtype, leaf in last.items()}


def pack(tree: Any) -> Packed:
    """Turn a tree into a document and leaves; copies no values.

    Raises:
        CheckpointError: something in the tree is not what write_tree takes; the message says where it stands.
    """
    leaves: list[Tensor | np.ndarray] = []
    packed = _pack(tree, "tree", leaves)
    table = _lay_out(leaves)
    document = json.dumps({"tree": packed, "arrays": table}, allow_nan=False, separators=(",", ":")).encode()
    return Packed(document, table, leaves)


def write_tree(path: Path, tree: Any, attributes: Mapping[str, Any] | None = None) -> str:
    """Write a tree to path, which appears complete and on disk, or not at all.

    Args:
        path: the file; its folder must exist.
        tree: dicts with str or int keys, lists, tuples, strided torch tensors of any device and plain dtype, numeric
            numpy arrays, int, float, str, bool, None. A float NaN comes back as a NaN, if not of the same bits.
        attributes: text and numbers for the root of the file.

    Returns:
        CRC-32 of document and values, eight hexadecimal digits.

    Raises:
        CheckpointError: something in the tree is of another type; the message says where it stands.
    """
    packed = pack(tree)
    checksum = crc32(packed.document)
    with hdf5.create(path) as file:
        set_title(file, attributes or {})
        create_arrays(file, packed.sizes)
        file["document"][...] = np.frombuffer(packed.document, np.uint8)
        file.flush()
        with Path(file.filename).open("r+b", BUFFER_BYTES) as raw:
            for dtype, indices in by_dtype(packed.table).items():
                raw.seek(hdf5.place(file[f"values/{dtype}"]))
                for index in indices:
                    values = as_bytes(packed.leaves[index])
                    checksum = crc32(values, checksum)
                    raw.write(values)
            raw.seek(hdf5.place(file["crc32"]))
            raw.write(checksum.to_bytes(4, "little"))
    return f"{checksum:08x}"


def set_title(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Say in the root what the file is, and what else there is to say."""
    title = {"Conventions": hdf5.CONVENTIONS, "title": "hpcopt tree", "schema_version": SCHEMA_VERSION}
    hdf5.set_attributes(file, {**title, **attributes})


def create_arrays(group: h5py.Group, sizes: tuple[int, dict[str, int]]) -> None:
    """Make room in a group for a tree of such Packed.sizes."""
    document_bytes, counts = sizes
    hdf5.contiguous(group, "document", (document_bytes,), np.dtype(np.uint8))
    hdf5.contiguous(group, "crc32", (1,), np.dtype("<u4"))
    values = group.create_group("values")
    for dtype, count in counts.items():
        array = hdf5.contiguous(values, dtype, (count,), np.dtype(STORED_AS[dtype]))
        hdf5.set_attributes(array, {"dtype": dtype, "units": "1", "long_name": f"values of all tensors of {dtype}"})


def read_tree(path: Path, part: str = "/") -> Any:
    """Read what write_tree wrote; tensors come back on the CPU.

    Args:
        path: the file.
        part: the group that the tree is in, of a file that holds several.

    Raises:
        CheckpointError: the file is missing, or damaged anywhere.
    """
    with _reading(path, part) as group:
        document = hdf5.document(group)
        contents = json.loads(document)
        table = [Leaf(*row) for row in contents["arrays"]]
        leaves: list[Any] = [None] * len(table)
        checksum = crc32(document)
        with FileIO(path) as raw:
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # small tensors, too, are read ahead
            for dtype, indices in by_dtype(table).items():
                raw.seek(hdf5.place(_checked(group, dtype, [table[index] for index in indices])))
                for index in indices:
                    leaves[index] = empty(table[index])
                    checksum = _read_into(memory(leaves[index]), raw, checksum)
        if checksum != _stored_checksum(group):
            raise ValueError("its values do not match its checksum")
        return unpack(contents["tree"], leaves)


def _read_into(values: memoryview, raw: FileIO, checksum: int) -> int:
    """Fill values from a file; gives the checksum carried on over what was read."""
    read = 0
    while read < len(values) and (count := raw.readinto(values[read : read + BLOCK_BYTES])):
        checksum = crc32(values[read : read + count], checksum)
        read += count
    return checksum


def tree_checksum(path: Path, part: str = "/") -> str:
    """The checksum as write_tree returned it, of what the file should hold. Reads only the file's header."""
    with _reading(path, part) as group:
        return f"{_stored_checksum(group):08x}"


def _stored_checksum(group: h5py.Group) -> int:
    return int(hdf5.vector(group, "crc32", "<u4")[0])


def verify_tree(path: Path, part: str = "/") -> str:
    """Read every byte and compare with the checksum, which is returned, without building the tree.

    Raises:
        CheckpointError: the file is missing, or damaged anywhere.
    """
    with _reading(path, part) as group:
        document = hdf5.document(group)
        checksum = crc32(document)
        table = [Leaf(*row) for row in json.loads(document)["arrays"]]
        for dtype, indices in by_dtype(table).items():
            array = _checked(group, dtype, [table[index] for index in indices])
            for block in hdf5.blocks(path, hdf5.place(array), array.nbytes):
                checksum = crc32(block, checksum)
        if checksum != _stored_checksum(group):
            raise ValueError("its values do not match its checksum")
    return f"{checksum:08x}"


@contextlib.contextmanager
def _reading(path: Path, part: str) -> Iterator[h5py.Group]:
    """Open a tree's group in a file of this schema; damage becomes a CheckpointError."""
    with hdf5.reading(path, CheckpointError, REMEDY) as file:
        if (schema := file.attrs["schema_version"]) != SCHEMA_VERSION:
            raise ValueError(f"it is of schema {schema}, and this hpcopt reads {SCHEMA_VERSION}")
        group = file[part]
        if "document" not in group and "values" not in group and len(group):
            parts = hdf5.printable(", ".join(group))
            raise CheckpointError(f"{path} holds the parts {parts}: name the folder that it is in")
        yield group


def has_values(tensor: Tensor) -> bool:
    """Whether it is numbers side by side, as a file can hold: neither sparse, nor on the meta device, without any."""
    return tensor.layout == torch.strided and not tensor.is_meta


def _pack(node: Any, place: str, leaves: list[Tensor | np.ndarray]) -> Any:
    """Turn a node into JSON: an object has one key, which says what it stands for; everything else is itself."""
    match node:
        case None | bool() | int() | str():
            return node
        case float():
            return node if math.isfinite(node) else {"float": repr(float(node))}
        case list():
            return [_pack(value, f"{place}[{i}]", leaves) for i, value in enumerate(node)]
        case tuple():
            return {"tuple": [_pack(value, f"{place}[{i}]", leaves) for i, value in enumerate(node)]}
        case dict():
            if wrong := [key for key in node if type(key) not in (str, int)]:
                raise CheckpointError(f"{place}: a checkpoint's keys are str or int, not {wrong[0]!r}")
            return {"dict": [[key, _pack(value, f"{place}[{key!r}]", leaves)] for key, value in node.items()]}
        case Tensor() | np.ndarray():
            if _dtype_name(node) not in STORED_AS or (isinstance(node, Tensor) and not has_values(node)):
                raise CheckpointError(f"{place}: a checkpoint cannot hold {type(node).__name__} of {node.dtype}")
            leaves.append(node)
            return {"array": len(leaves) - 1}
        case _:
            raise CheckpointError(f"{place}: a checkpoint holds data, not {type(node).__name__}")


def unpack(node: Any, leaves: Sequence[Tensor | np.ndarray]) -> Any:
    """The tree of a document, with its leaves."""
    if isinstance(node, list):
        return [unpack(value, leaves) for value in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    match kind:
        case "float":
            return float(content)
        case "tuple":
            return tuple(unpack(value, leaves) for value in content)
        case "dict":
            return {key: unpack(value, leaves) for key, value in content}
        case "array":
            return leaves[content]
    raise ValueError(f"unknown kind {kind!r} in its document")


def _lay_out(leaves: Sequence[Tensor | np.ndarray]) -> list[Leaf]:
    """Place the leaves one after the other in the array of their dtype."""
    used: dict[str, int] = {}
    table = []
    for leaf in leaves:
        dtype = _dtype_name(leaf)
        kind = "tensor" if isinstance(leaf, Tensor) else "array"
        table.append(Leaf(kind, dtype, tuple(leaf.shape), used.get(dtype, 0)))
        used[dtype] = table[-1].first + table[-1].size
    return table


def by_dtype(table: Sequence[Leaf]) -> dict[str, list[int]]:
    """Indices of the leaves of each dtype: the order of values in the file, and in the checksum."""
    groups: dict[str, list[int]] = {}
    for index, leaf in enumerate(table):
        groups.setdefault(leaf.dtype, []).append(index)
    return groups


def _checked(group: h5py.Group, dtype: str, leaves: Sequence[Leaf]) -> h5py.Dataset:
    """The array of a dtype, after making sure that the leaves fill it exactly, one after the other."""
    array, used = hdf5.vector(group, f"values/{dtype}", STORED_AS[dtype]), 0
    for leaf in leaves:
        if leaf.first != used or min(leaf.shape, default=0) < 0:
            raise ValueError("its table is inconsistent")
        used += leaf.size
    if array.shape != (used,):
        raise ValueError("its table does not fit its values")
    return array


def _dtype_name(leaf: Tensor | np.ndarray) -> str:
    return str(leaf.dtype).removeprefix("torch.") if isinstance(leaf, Tensor) else leaf.dtype.name


def _on_cpu(leaf: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """The same values as contiguous memory of this machine's byte order; copies only if needed."""
    if isinstance(leaf, Tensor):
        return leaf.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return np.ascontiguousarray(leaf, leaf.dtype.newbyteorder("="))


def empty(leaf: Leaf) -> Tensor | np.ndarray:
    """Memory for a leaf: numpy's, as np.fromfile has it."""
    values = np.empty(leaf.shape, STORED_AS[leaf.dtype] if leaf.kind == "tensor" else leaf.dtype)
    return values if leaf.kind == "array" else torch.from_numpy(values).view(getattr(torch, leaf.dtype))


def as_bytes(leaf: Tensor | np.ndarray) -> memoryview:
    """The values of a leaf as they stand in the file; copies only what is not contiguous memory of the CPU."""
    return memory(_on_cpu(leaf))


def memory(leaf: Tensor | np.ndarray) -> memoryview:
    """The memory of a contiguous leaf as bytes; not a copy."""
    if isinstance(leaf, Tensor):
        leaf = torch.empty(0).numpy() if leaf.numel() == 0 else leaf.reshape(-1).view(torch.uint8).numpy()
    return leaf.reshape(-1).view(np.uint8).data
