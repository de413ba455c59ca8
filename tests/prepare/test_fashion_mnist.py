"""Fashion-MNIST from its four files, which must be the published ones."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.prepare import fashion_mnist
from tests.conftest import require


@pytest.fixture
def files() -> Path:
    """The folder of the four files."""
    there = fashion_mnist.FOLDER.exists()
    require("fashion-mnist", there, "`apt-get install dataset-fashion-mnist`")
    return fashion_mnist.FOLDER


def test_idx_is_read_as_its_definition_says():
    raw = bytes([0, 0, 8, 2]) + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    np.testing.assert_array_equal(fashion_mnist.idx(raw), [[0, 1, 2], [3, 4, 5]])


def test_published_numbers(files):
    data = fashion_mnist.read(None)
    assert data.arrays["train"]["images"].shape == (60000, 1, 28, 28)
    assert data.arrays["test"]["images"].shape == (10000, 1, 28, 28)
    assert data.attributes["mean"][0] == pytest.approx(0.2860, abs=1e-4)
    assert data.attributes["std"][0] == pytest.approx(0.3530, abs=1e-4)
    for split, each in (("train", 6000), ("test", 1000)):
        np.testing.assert_array_equal(np.bincount(data.arrays[split]["labels"]), np.full(10, each))


def test_missing_files_name_the_package(tmp_path):
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        fashion_mnist.read(tmp_path)


def test_other_files_are_refused(tmp_path, files):
    for path in files.glob("*.gz"):
        shutil.copy(path, tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    raw = bytearray(gzip.decompress(labels.read_bytes()))
    raw[100] ^= 1
    labels.write_bytes(gzip.compress(bytes(raw), 1))
    with pytest.raises(DataError, match="checksum"):
        fashion_mnist.read(tmp_path)
    labels.write_bytes(labels.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        fashion_mnist.read(tmp_path)
