"""Streams of demands of every kind of file are read alike, as they grow, and what is no stream is one error."""

import os

import h5py
import numpy as np
import pytest

from hpcopt.analysis.assurance.demands import Demands, has_demands
from hpcopt.errors import DataError, HpcoptError
from hpcopt.store.metrics import MetricsFile, software

FAILED = [0, 1, 0, 0, 1]
CLASSES = ["a", "b", "a", "a", "c"]


def csv(folder):
    rows = "".join(f"{f}, {c}\n" for f, c in zip(FAILED, CLASSES, strict=True))
    (folder / "demands.csv").write_text(f"failure, class\n{rows}")
    return folder / "demands.csv"


def correct_csv(folder):
    rows = "".join(f"x,{c},{1 - f}\r\n" for f, c in zip(FAILED, CLASSES, strict=True))
    (folder / "demands.csv").write_text(f"note,class,correct\r\n{rows}")
    return folder / "demands.csv"


def hdf5(folder):
    with h5py.File(folder / "demands.h5", "w") as file:
        file["failure"] = np.array(FAILED, bool)
        file["class"] = np.array(CLASSES, "S")
    return folder / "demands.h5"


def grouped_hdf5(folder):
    with h5py.File(folder / "demands.h5", "w") as file:
        file["demands/correct"] = 1.0 - np.array(FAILED)
        file["demands/class"] = np.array(CLASSES, "S")
    return folder / "demands.h5"


def run(folder):
    file = MetricsFile(folder / "metrics.h5")
    file.create(1, ["forward"], software())
    assert not has_demands(folder)
    file.put_table("demands", [1, 1, 2, 2, 2], {"failure": FAILED, "class": CLASSES})
    assert has_demands(folder)
    return folder


@pytest.mark.parametrize("kind", [csv, correct_csv, hdf5, grouped_hdf5, run])
def test_every_kind_of_file_says_the_same(kind, tmp_path):
    demands = Demands(kind(tmp_path))
    assert demands.failures.tolist() == [bool(f) for f in FAILED]
    assert (demands.failed, len(demands), demands.counts) == (2, 5, {"a": 3, "b": 1, "c": 1})
    assert demands.look() == 0


def test_a_csv_file_is_read_on_by_whole_lines(tmp_path):
    demands = Demands(csv(tmp_path))
    with demands.path.open("a") as file:
        file.write("1,a\n0")
        file.flush()
        assert demands.look() == 1
        file.write(",b\n")
        file.flush()
        assert demands.look() == 1
    assert demands.failures[-2:].tolist() == [True, False]
    assert demands.classes[-2:] == ["a", "b"]


def test_metrics_are_read_on(tmp_path):
    demands = Demands(run(tmp_path))
    MetricsFile(tmp_path / "metrics.h5").put_table("demands", [3, 3], {"failure": [1, 0], "class": ["a", "b"]})
    assert demands.look() == 2
    assert (demands.failed, len(demands)) == (3, 7)


def test_the_digest_tells_the_first_demands_apart(tmp_path):
    demands = Demands(csv(tmp_path))
    first = demands.digest(3)
    demands.failures[4] = False
    assert demands.digest(3) == first
    demands.failures[0] = True
    assert demands.digest(3) != first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("failure\n0\n2\n", "failure of demand 2 is '2', neither 0 nor 1"),
        ("correct,class\n1,a\nyes,b\n", "correct of demand 2 is 'yes'"),
        ("failure\n\n0.5\n", r"demand 1 is '0\.5'"),
        ("failure\nnan\n", "'nan'"),
        ("score\n1\n", "no column failure or correct, but score"),
        ("failure,class\n0\n", "has not the columns failure, class"),
        ("", "is empty"),
        ("failure", "is empty"),
        ("\x00\xff\n", "no column failure or correct|cannot be read"),
    ],
)
def test_what_is_no_stream_is_one_error(text, said, tmp_path):
    path = tmp_path / "demands.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=said):
        Demands(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        Demands(tmp_path / "missing.csv")
    os.mkfifo(tmp_path / "fifo.csv")
    with pytest.raises(DataError, match="is a FIFO"):
        Demands(tmp_path / "fifo.csv")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["failure"] = np.array([0.0, np.nan])
    with pytest.raises(DataError, match="demand 2 is 'nan'"):
        Demands(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["failure"] = np.zeros((2, 2))
    with pytest.raises(DataError, match="is no list"):
        Demands(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["failure"] = [0, 1]
        file["class"] = [7]
    with pytest.raises(DataError, match="2 new demands and 1 classes"):
        Demands(tmp_path / "c.h5")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["failure"] = [0]
        file["class"] = ["a"]
    with pytest.raises(DataError, match="text of variable length"):
        Demands(tmp_path / "e.h5")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["failure"] = [0]
        file["class"] = np.array([b"\xac"])
    assert Demands(tmp_path / "f.h5").classes == ["\ufffd"]
    (tmp_path / "d.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:200])
    with pytest.raises(HpcoptError, match="damaged"):
        Demands(tmp_path / "d.h5")
    MetricsFile(tmp_path / "metrics.h5").create(1, ["forward"], software())
    with pytest.raises(DataError, match="no table demands"):
        Demands(tmp_path)


def test_a_stream_only_grows(tmp_path):
    demands = Demands(csv(tmp_path))
    demands.path.write_text("failure,class\n0,a\n")
    with pytest.raises(DataError, match="is shorter than it was"):
        demands.look()
    demands = Demands(hdf5(tmp_path))
    with h5py.File(demands.path, "w") as file:
        file["failure"] = [0]
        file["class"] = np.array(["a"], "S")
    with pytest.raises(DataError, match="is shorter than it was"):
        demands.look()
