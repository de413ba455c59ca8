"""Tables of HDF5 that grow by rows: the columns of a group, all of one length along the dimension ``step``.

What was not given is NaN, -1 in whole numbers, and empty in texts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from hpcopt.store import hdf5

CHUNK_BYTES, CHUNK_ROWS = 1 << 18, 512
DIMENSIONS = ("rank", "phase")  # beside step, which is a column too
INTEGERS = ("step", "samples", "ranks", "bucket", "bytes", "steps")
UNITS = {
    "step": "1",
    "epoch": "1",
    "time_s": "s",
    "step_s": "s",
    "samples": "1",
    "ranks": "1",
    "bytes": "byte",
    "energy_j": "J",
}
MEANINGS = {
    "step": "number of steps done",
    "epoch": "passes over the training data done",
    "time_s": "wall time since the run began, without the gaps between restarts",
    "step_s": "wall time of the step on rank 0",
    "loss": "mean loss over the global batch",
    "learning_rate": "learning rate of the step",
    "samples": "training samples used since the run began",
    "energy_j": "energy that all nodes took since the row before that has one, or since the start",
    "ranks": "number of ranks",
    "phase_s": "wall time of each phase of the step on each rank",
    "sent_bytes": "bytes that each rank sent in the step",
    "dense_bytes": "bytes that uncompressed collectives would have sent",
    "bytes": "bytes of the bucket's values",
    "algorithm": "collective that the bucket takes",
    "predicted_s": "time of the bucket's collective as the calibration has it",
    "measured_s": "time of the bucket's collective, mean over the steps of the shortest of the ranks",
    "steps": "steps that were measured",
}


def usable(name: str) -> bool:
    """Whether a column can be called that: HDF5 takes other names for something else."""
    return "/" not in name and name not in ("", ".", *DIMENSIONS)


def append(group: h5py.Group, columns: Mapping[str, Any]) -> None:
    """Lengthen all tables of a group by the rows of columns; new columns are made, missing ones stay without values.

    Raises:
        ValueError: a column cannot be called that, or is not as long as ``step``.
    """
    before, count = len(group["step"]), len(columns["step"])
    values = {name: np.asarray(column) for name, column in columns.items()}
    for name, column in values.items():
        if not usable(name):
            raise ValueError(
                f"a column of {group.name} cannot be called {name!r}: HDF5 would take it for something else"
            )
        if column.shape != (count,):
            raise ValueError(f"{group.name}/{name} has values of shape {column.shape} for {count} rows")
    for name, column in values.items():
        if name not in group:
            text = column.dtype.kind in "OSU"
            make_column(group, name, h5py.string_dtype() if text else np.int64 if name in INTEGERS else np.float64)
    selected = h5py.h5s.create_simple((before + count,), (h5py.h5s.UNLIMITED,))
    selected.select_hyperslab((before,), (count,))
    memory = h5py.h5s.create_simple((count,))
    for name, dataset in tables(group):
        dataset.id.set_extent((before + count, *dataset.shape[1:]))
        if name not in values:
            continue
        if h5py.check_string_dtype(dataset.dtype):
            dataset[before:] = values[name].tolist()
        else:  # as dataset[before:] = values, but five times as fast, which hundreds of columns need
            dataset.id.write(memory, selected, np.ascontiguousarray(values[name], dataset.dtype))


def tables(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """The datasets with a row a step."""
    return [(name, dataset) for name, dataset in group.items() if name not in DIMENSIONS]


def truncate(group: h5py.Group, rows: int) -> None:
    """Keep so many rows."""
    for _, dataset in tables(group):
        dataset.resize(rows, axis=0)


def make_column(group: h5py.Group, name: str, dtype: Any) -> None:
    """Make an empty column with a row a step; `step` itself becomes the dimension of the others."""
    make_table(group, name, dtype, ("step",), UNITS.get(name, "s" if name.endswith("_s") else "1"))
    if name == "step":
        group[name].make_scale("step")


def make_dimension(group: h5py.Group, name: str, data: Any, dtype: Any, **layout: Any) -> h5py.Dataset:
    """Make the labels of a dimension."""
    labels = group.create_dataset(name, data=data, dtype=dtype, **layout)
    labels.make_scale(name)
    return labels


def make_table(group: h5py.Group, name: str, dtype: Any, dims: Sequence[str], units: str) -> None:
    """Make an empty table, as long as the group's others, that grows along all its dimensions but phase."""
    known = group.get("step")
    rows = 0 if known is None else len(known)
    shape = (rows, *(len(group[dim]) for dim in dims[1:]))
    item = np.dtype(dtype).itemsize * int(np.prod(shape[1:]))
    chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, item)))
    text = h5py.check_string_dtype(np.dtype(dtype)) is not None
    dataset = group.create_dataset(
        name,
        shape,
        dtype,
        maxshape=tuple(len(group[dim]) if dim == "phase" else None for dim in dims) if dims != ("step",) else (None,),
        chunks=(chunk_rows, *(max(1, length) for length in shape[1:])),
        fillvalue=None if text else -1 if np.dtype(dtype).kind == "i" else np.nan,
        fletcher32=not text,
    )
    hdf5.set_attributes(dataset, {"units": units, "long_name": MEANINGS.get(name, name.replace("_", " "))})
    for dim, label in zip(dataset.dims, dims, strict=True):
        dim.label = label
        if label != name:
            dim.attach_scale(group[label])
