"""Files of numbers -> shards: ``python -m hpcopt.prepare arrays --train FILE --test FILE``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcopt.errors import DataError, HpcoptError
from hpcopt.prepare.dataset import DataSet, write_whole

SHARD_BYTES = 64 << 20


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt prepare arrays",
        description="Turn arrays or tables into HDF5 shards, which ranks read without holding them in memory.",
        epilog="A .npz gives its arrays, with the rows first; a .npy one array, x; a .csv with names in its first line "
        "or a .parquet (with pandas installed) an array for each column.",
    )
    p.add_argument("--train", type=Path, required=True, help=".npz, .npy, .csv or .parquet, the rows to train on")
    p.add_argument("--test", type=Path, required=True, help="likewise, the rows to evaluate on")
    p.add_argument("--name", default="arrays", help="of the data set, the folder's (default: %(default)s)")
    p.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    p.add_argument("--force", action="store_true", help="make it again even if it is there")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the shards and say what they hold; returns the exit code."""
    options = parser().parse_args(arguments)
    folder = options.data_dir / options.name
    try:
        if folder.exists() and not options.force:
            raise DataError(f"{folder} is there already: --force makes it again, --name another")
        data = read(options.train, options.test)
        write_whole(folder, data, lambda: options.force)
    except HpcoptError as error:
        print(f"hpcopt prepare: {error}", file=sys.stderr)
        return error.exit_code
    rows = ", ".join(f"{len(next(iter(arrays.values()))):,} {split}" for split, arrays in data.arrays.items())
    print(f"{folder}: prepared, {rows} rows of {', '.join(data.arrays['train'])}")
    return 0


def read(train: Path, test: Path) -> DataSet:
    """The arrays of two files.

    Raises:
        DataError: a file cannot be read, holds no numbers, or has other arrays than the other file.
    """
    arrays = {split: table(path) for split, path in (("train", train), ("test", test))}
    kinds = [{name: (a.dtype, a.shape[1:]) for name, a in of.items()} for of in arrays.values()]
    if kinds[0] != kinds[1]:
        raise DataError(f"{train} has {_words(kinds[0])}, and {test} {_words(kinds[1])}: both need the same")
    row_bytes = sum(a.itemsize * int(np.prod(a.shape[1:])) for a in arrays["train"].values())
    attributes = {"title": f"{train.name} and {test.name}", "source": f"{train.name}, {test.name}"}
    return DataSet(arrays, attributes, {}, max(1, SHARD_BYTES // max(1, row_bytes)))


def table(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, each with the rows first.

    Raises:
        DataError: it cannot be read, has no rows, holds what is no number, or arrays of different lengths.
    """
    try:
        found = {name: np.asarray(values) for name, values in _read(path).items()}
    except (OSError, ValueError, ImportError) as cause:
        raise DataError(f"cannot read {path}: {cause}") from cause
    for name, values in found.items():
        if values.dtype.kind not in "uifb" or values.dtype.byteorder == ">" or values.ndim == 0:
            raise DataError(f"{path}: {name} is {values.dtype} of shape {values.shape}, not rows of numbers")
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) != 1 or not max(lengths.values()):
        raise DataError(f"{path} has {lengths or 'no arrays'}: all need the same number of rows, at least one")
    return found


def _read(path: Path) -> dict[str, np.ndarray]:
    match path.suffix:
        case ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        case ".npy":
            return {"x": np.load(path, allow_pickle=False)}
        case ".csv":
            with path.open(encoding="utf-8-sig") as file:
                names = [name.strip() for name in file.readline().split(",")]
                columns = np.loadtxt(file, delimiter=",", ndmin=2).T
            if len(columns) != len(names):
                raise ValueError(f"its first line names {len(names)} columns, and there are {len(columns)}")
            return dict(zip(names, columns.astype(np.float32), strict=True))
        case ".parquet":
            import pandas

            frame = pandas.read_parquet(path)
            return {str(name): frame[name].to_numpy() for name in frame.columns}
        case _:
            raise ValueError("it is none of .npz, .npy, .csv, .parquet")


def _words(kinds: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} ({dtype} {shape})" for name, (dtype, shape) in kinds.items())
