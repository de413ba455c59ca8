"""Files that are well formed and yet not ours, or made to do harm: one error each, and no more memory than the file."""

import json
import os
import random
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcopt.checkpoint import main
from hpcopt.errors import EXIT_BAD_INPUT, EXIT_DONE, HpcoptError
from hpcopt.store import hdf5, metrics
from hpcopt.store.checkpoint import MANIFEST, SHARED, Checkpoints, rank_part
from hpcopt.store.metrics import MetricsFile
from hpcopt.store.shards import Shards, write_shards
from hpcopt.store.tree import read_tree, verify_tree, write_tree

GIB = 1 << 30
SEEDS = int(os.environ.get("HPCOPT_FUZZ", "200"))  # more by hand


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def part(tmp_path) -> Path:
    path = tmp_path / "part.h5"
    write_tree(path, {"step": 3, "w": torch.arange(6.0), "t": torch.arange(4)})
    return path


def replace(file: h5py.File, name: str, **new: object) -> None:
    del file[name]
    file.create_dataset(name, **new)


def filled_document(file):
    replace(file, "document", shape=(GIB,), dtype="u1", fillvalue=32)


def compressed_document(file):
    replace(file, "document", data=np.full(1 << 20, 32, np.uint8), compression="gzip")


def sparse_document(file):
    """A hole: the file says that it is a terabyte, and is."""
    del file["document"]
    hdf5.contiguous(file, "document", (1 << 40,), np.dtype("u1"))[-1:] = 32


def filled_values(file):
    replace(file, "values/float32", shape=(GIB,), dtype="f4", fillvalue=1)


def document_of_text(file):
    replace(file, "document", data=np.array([b"{}"]))


def document_that_is_a_group(file):
    del file["document"]
    file.create_group("document")


def a_number_for_a_document(file):
    replace(file, "document", data=np.uint8(3))


def values_of_another_byte_order(file):
    replace(file, "values/float32", data=np.arange(6, dtype=">f4"))


def compound_values(file):
    replace(file, "values/float32", data=np.zeros(6, [("a", "f4")]))


def elsewhere(file):
    del file["values/float32"]
    file["values/float32"] = h5py.ExternalLink("/dev/zero", "/x")


def in_a_circle(file):
    del file["values"]
    file["values"] = h5py.SoftLink("/values")


def group_in_itself(file):
    file["values/float32x"] = file["values"]
    del file["values/float32"]
    file["values/float32"] = file["/"]


def schema_array(file):
    file.attrs["schema_version"] = [2, 2]


def schema_text(file):
    file.attrs["schema_version"] = "\x1b[2J two"


def long_checksum(file):
    replace(file, "crc32", shape=(GIB,), dtype="<u4", fillvalue=7)


def nothing(file):
    for name in list(file):
        del file[name]


FOREIGN = [
    filled_document,
    compressed_document,
    sparse_document,
    filled_values,
    document_of_text,
    document_that_is_a_group,
    a_number_for_a_document,
    values_of_another_byte_order,
    compound_values,
    elsewhere,
    in_a_circle,
    group_in_itself,
    schema_array,
    schema_text,
    long_checksum,
    nothing,
]


@pytest.mark.parametrize("change", FOREIGN, ids=lambda f: f.__name__)
def test_a_part_that_is_none(part, change, capsys):
    before = peak_bytes()
    with h5py.File(part, "r+", libver=hdf5.VERSIONS) as file:
        change(file)
    for read in (read_tree, verify_tree):
        with pytest.raises(HpcoptError, match=r"part\.h5 (is damaged|holds)"):
            read(part)
    for command in ("ls", "verify", "export"):
        arguments = [command, str(part)] + [str(part.with_suffix(".pt"))] * (command == "export")
        assert main(arguments) == EXIT_BAD_INPUT
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "\x1b" not in error
    assert peak_bytes() - before < GIB // 4


def test_values_that_are_a_hole(part):
    """The file says that it has a gigabyte of values, and nobody wrote them."""
    before, leaf = peak_bytes(), ["tensor", "float32", [GIB // 4], 0]
    raw = json.dumps({"tree": {"array": 0}, "arrays": [leaf]}).encode()
    with h5py.File(part, "r+", libver=hdf5.VERSIONS) as file:
        for name in ("document", "values/float32", "values/int64"):
            del file[name]
        hdf5.contiguous(file, "document", (len(raw),), np.dtype("u1"))[...] = np.frombuffer(raw, np.uint8)
        hdf5.contiguous(file, "values/float32", (GIB // 4,), np.dtype("f4"))[-1:] = 1
    for read in (read_tree, verify_tree):
        with pytest.raises(HpcoptError, match=r"stands for 1\d{9} bytes and holds"):
            read(part)
    assert peak_bytes() - before < GIB // 4


LEAF = ["tensor", "float32", [2], 0]
DOCUMENTS = {
    "not JSON": "hello",
    "deep": "[" * 100_000,
    "a list": "[1]",
    "no arrays": '{"tree": 1}',
    "arrays of numbers": '{"tree": 1, "arrays": [1]}',
    "an absurd shape": json.dumps({"tree": {"array": 0}, "arrays": [["tensor", "float32", [1 << 60], 0]]}),
    "an empty absurd shape": json.dumps({"tree": {"array": 0}, "arrays": [["tensor", "float32", [0, 1 << 62], 0]]}),
    "a shape of text": json.dumps({"tree": {"array": 0}, "arrays": [["tensor", "float32", ["a"], 0]]}),
    "an unknown dtype": json.dumps({"tree": {"array": 0}, "arrays": [["tensor", "object", [2], 0]]}),
    "no such array": json.dumps({"tree": {"array": 9}, "arrays": [LEAF]}),
    "an array of text": json.dumps({"tree": {"array": "x"}, "arrays": [LEAF]}),
    "an unknown kind": json.dumps({"tree": {"pickle": "x"}, "arrays": [LEAF]}),
    "two kinds": json.dumps({"tree": {"float": "1", "tuple": []}, "arrays": [LEAF]}),
    "a dict of numbers": json.dumps({"tree": {"dict": 3}, "arrays": [LEAF]}),
    "keys that are lists": json.dumps({"tree": {"dict": [[[1], 2]]}, "arrays": [LEAF]}),
    "a float of text": json.dumps({"tree": {"float": "x"}, "arrays": [LEAF]}),
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_that_is_none_under_a_right_checksum(part, document):
    from isal.isal_zlib import crc32

    raw, values = document.encode(), np.arange(2, dtype=np.float32)
    with h5py.File(part, "r+", libver=hdf5.VERSIONS) as file:
        for name, array in (("document", np.frombuffer(raw, np.uint8)), ("values/float32", values)):
            del file[name]
            hdf5.contiguous(file, name, array.shape, array.dtype)[...] = array
        file["crc32"][0] = crc32(values.tobytes(), crc32(raw))
    with pytest.raises(HpcoptError, match="is damaged"):
        read_tree(part)


def saved(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.begin(5)
    for name in (SHARED, rank_part(0)):
        checkpoints.write_part(5, name, {"solver": {"model": {"w": torch.arange(3.0)}}})
    checkpoints.commit(5, [SHARED, rank_part(0)])
    return checkpoints


ABOUT = {"bytes": 1, "crc32": "00000000"}
MANIFESTS = {
    "no parts": {"parts": {}},
    "parts that are a list": {"parts": []},
    "no shared part": {"parts": {"rank00000": ABOUT}},
    "a part elsewhere": {"parts": {SHARED: ABOUT, "../../../etc/x": ABOUT}},
    "a part without a size": {"parts": {SHARED: {"crc32": "00000000"}}},
    "a checksum of another kind": {"parts": {SHARED: {"bytes": 1, "crc32": 7}}},
    "a size of another kind": {"parts": {SHARED: {"bytes": True, "crc32": "00000000"}}},
    "another step": {"step": 6},
    "another schema": {"schema_version": 99},
    "a schema of another kind": {"schema_version": [2]},
    "no date": {"date_created": None},
    "another file": {"file": "/etc/passwd"},
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_none(tmp_path, change, capsys):
    checkpoints = saved(tmp_path)
    path = checkpoints.path(5) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(HpcoptError, match=rf"{MANIFEST} is damaged"):
        checkpoints.read_part(5, SHARED)
    assert main(["verify", str(tmp_path)]) == EXIT_BAD_INPUT
    assert main(["ls", str(tmp_path)]) == EXIT_DONE
    assert "whole" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "3", '"x"', '{"step": ' + "9" * 10_000 + "}", "\x00\xff"])
def test_a_manifest_that_is_no_object(tmp_path, text):
    checkpoints = saved(tmp_path)
    (checkpoints.path(5) / MANIFEST).write_text(text)
    with pytest.raises(HpcoptError, match=rf"{MANIFEST} is damaged"):
        checkpoints.manifest(5)


def test_names_that_look_like_checkpoints(tmp_path):
    checkpoints = saved(tmp_path)
    for name in ("step_" + "9" * 40, "step_00000000007", "step_1", "step_00000008x", "step_٠٠٠٠٠٠٠٩"):
        (tmp_path / name).mkdir()
    assert checkpoints.steps() == [5]


# A small fuzz: whatever is changed in the house's files, what reads them gives what was written or one error.


def mutate(path: Path, draw: random.Random) -> None:
    """Change some bytes, or an attribute, or a dataset, of a file."""
    if draw.random() < 0.4:
        raw = bytearray(path.read_bytes())
        for _ in range(draw.choice([1, 4, 64])):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        path.write_bytes(raw[: draw.randrange(len(raw))] if draw.random() < 0.2 else raw)
        return
    with h5py.File(path, "r+", libver=hdf5.VERSIONS) as file:
        names: list[str] = []
        file.visit(names.append)
        target = file[draw.choice(["/", *names])]
        attributes = [name for name in target.attrs if not name.isupper()]
        if attributes and draw.random() < 0.6:
            target.attrs[draw.choice(attributes)] = draw.choice(VALUES)
        elif target.name != "/":
            name, value = target.name, draw.choice(VALUES)
            del file[name]
            if draw.random() < 0.7:
                file[name] = value
            elif draw.random() < 0.5:
                file[name] = h5py.SoftLink(draw.choice(["/", name, "/nowhere"]))
            else:
                file.create_dataset(name, shape=(GIB,), dtype=draw.choice(["u1", "f4", "i8"]), fillvalue=1)


VALUES = [
    0,
    -1,
    1 << 62,
    np.nan,
    "text",
    "\x1b[2J",
    b"\xff\xfe",
    np.zeros(0),
    np.zeros((2, 2)),
    np.array([b"a", b"b"]),
    np.zeros(2, [("a", "i4")]),
    np.float16(1),
    np.array([True]),
]


def everything(file: h5py.File) -> dict[str, object]:
    return {name: np.asarray(dataset[-1:]).tolist() for name, dataset in file["steps"].items()}


def make_part(path: Path) -> None:
    write_tree(path, {"a": torch.arange(40.0), "b": [np.arange(3), 1.5, "x"], "c": (None, True)})


def make_metrics(path: Path) -> None:
    MetricsFile(path).create(2, ["a", "b"], {"title": "t", "config": "{}"})
    rows = {"step": np.arange(1, 4), "loss": np.ones(3)}
    MetricsFile(path).append_steps(rows, np.zeros((3, 2, 2)), np.zeros((3, 2)), np.zeros((3, 2)))


def make_shard(path: Path) -> None:
    arrays = {"x": np.arange(12).reshape(4, 3), "labels": np.arange(4)}
    assert write_shards(path.parent, "train", arrays, rows_per_shard=4, attributes={"title": "t"}) == [path]


def use_part(path: Path) -> None:
    read_tree(path)


def use_metrics(path: Path) -> None:
    metrics.read(path, everything)
    MetricsFile(path).restart(2, 3, {"title": "again"})


def use_shard(path: Path) -> None:
    shards = Shards(path.parent, "train")
    shards.verify()
    shards.rows(np.arange(len(shards)))


USES = {
    "part.h5": (make_part, use_part),
    "metrics.h5": (make_metrics, use_metrics),
    "train-00000.h5": (make_shard, use_shard),
}


@pytest.mark.parametrize("name", USES)
def test_any_change_of_a_file_is_harmless_or_one_error(tmp_path, name):
    make, use = USES[name]
    path = tmp_path / name
    make(path)
    original, errors, before = path.read_bytes(), 0, peak_bytes()
    for seed in range(SEEDS):
        path.write_bytes(original)
        try:
            mutate(path, random.Random(seed))
        except (KeyError, OSError, RuntimeError, ValueError, TypeError):
            continue  # what HDF5 itself does not write
        try:
            use(path)
        except HpcoptError as error:
            assert str(path.parent) in str(error), seed
            errors += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert errors > 40
    assert peak_bytes() - before < GIB // 4
