"""Shards give back the rows that were written, in any order; a damaged, missing or foreign file is an error, never a
wrong value.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.store.shards import About, Shards, shard_path, write_shards

RNG = np.random.default_rng(1)
ROWS = 23


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {"images": RNG.integers(0, 256, (ROWS, 2, 3, 5), np.uint8), "labels": np.arange(ROWS)}


@pytest.fixture
def folder(tmp_path, arrays):
    attributes = {"classes": ["zero", "one é"], "scale": 1 / 255, "mean": np.array([0.1, 0.2])}
    about = {"images": About("intensity", "1", ("row", "channel", "y", "x"))}
    write_shards(tmp_path / "data", "train", arrays, rows_per_shard=5, attributes=attributes, about=about)
    return tmp_path / "data"


@pytest.mark.parametrize("indices", [[], [0], [22, 0, 22, 7, 5, 4], list(range(ROWS)), RNG.permutation(ROWS)])
def test_rows_are_those_of_the_arrays(folder, arrays, indices):
    rows = Shards(folder, "train").rows(np.array(indices, np.int64))
    for name, values in arrays.items():
        np.testing.assert_array_equal(rows[name], values[np.array(indices, np.int64)])
        assert rows[name].dtype == values.dtype


def test_rows_are_found_from_wherever_the_program_has_gone(folder, arrays, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    shards = Shards(Path(folder.name), "train")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(shards.rows(np.arange(ROWS))["labels"], arrays["labels"])


def test_opening_tells_fields_and_attributes(folder):
    shards = Shards(folder, "train")
    assert len(shards) == ROWS
    assert {name: (field.dtype, field.shape) for name, field in shards.fields.items()} == {
        "images": (np.uint8, (2, 3, 5)),
        "labels": (np.int64, ()),
    }
    assert shards.attributes["classes"] == ["zero", "one é"]
    assert shards.attributes["scale"] == 1 / 255
    np.testing.assert_array_equal(shards.attributes["mean"], [0.1, 0.2])


def test_a_file_explains_itself(folder):
    with h5py.File(shard_path(folder, "train", 0)) as file:
        assert [dim.label for dim in file["images"].dims] == ["row", "channel", "y", "x"]
        assert file["images"].attrs["units"] == b"1"


@pytest.mark.parametrize("indices", [[-1], [ROWS], [0, 10**12]])
def test_rows_outside_are_refused(folder, indices):
    with pytest.raises(IndexError):
        Shards(folder, "train").rows(np.array(indices))


def test_no_rows(tmp_path):
    write_shards(tmp_path, "test", {"x": np.zeros((0, 4), np.float32)}, rows_per_shard=5, attributes={})
    shards = Shards(tmp_path, "test")
    shards.verify()
    assert len(shards) == 0
    assert shards.rows(np.array([], np.int64))["x"].shape == (0, 4)


def test_rows_are_private_copies(folder):
    shards = Shards(folder, "train")
    shards.rows(np.array([3]))["labels"][:] = 99
    assert shards.rows(np.array([3]))["labels"] == [3]


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"python -m hpcopt\.prepare digits --data-dir"):
        Shards(tmp_path / "digits", "train")


@pytest.mark.parametrize("shard", range(1, 5))
def test_a_missing_shard(folder, shard):
    shard_path(folder, "train", shard).unlink()
    with pytest.raises(DataError, match="missing"):
        Shards(folder, "train")


def test_a_shard_under_another_number(folder):
    shard_path(folder, "train", 1).replace(shard_path(folder, "train", 2))
    shard_path(folder, "train", 3).rename(shard_path(folder, "train", 1))
    with pytest.raises(DataError):
        Shards(folder, "train")


def test_shards_that_do_not_belong_together(folder, tmp_path):
    other = {"images": np.zeros((ROWS, 2, 3, 4), np.uint8), "labels": np.arange(ROWS)}
    write_shards(tmp_path / "other", "train", other, rows_per_shard=5, attributes={})
    shard_path(tmp_path / "other", "train", 2).replace(shard_path(folder, "train", 2))
    with pytest.raises(DataError, match="belong"):
        Shards(folder, "train")


def test_arrays_of_different_lengths(tmp_path):
    with pytest.raises(DataError, match="same number of rows"):
        write_shards(tmp_path, "train", {"a": np.zeros(3), "b": np.zeros(4)}, rows_per_shard=2, attributes={})


def test_truncation_anywhere_is_seen_at_open(folder):
    path = shard_path(folder, "train", 1)
    whole = path.read_bytes()
    for size in [*RNG.integers(0, len(whole), 20), 0, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"python -m hpcopt\.prepare"):
            Shards(folder, "train")


def test_a_flipped_bit_anywhere_is_seen_or_changes_nothing(folder, arrays):
    path = shard_path(folder, "train", 1)
    whole = path.read_bytes()
    good = Shards(folder, "train")
    seen = 0
    for position in [*RNG.integers(0, len(whole), 80), *range(0, 64, 3)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << RNG.integers(8)
        path.write_bytes(damaged)
        try:
            shards = Shards(folder, "train")
            shards.verify()
        except DataError:
            seen += 1
            continue
        for name, values in shards.rows(np.arange(ROWS)).items():
            np.testing.assert_array_equal(values, arrays[name])
        assert repr(shards.attributes) == repr(good.attributes)
    assert seen > 20


def test_parts_share_the_verification(folder):
    path = shard_path(folder, "train", 3)
    damaged = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        damaged[file["labels"].id.get_offset()] ^= 1
    path.write_bytes(damaged)
    for part, parts in ((0, 2), (1, 3), (2, 3), (0, 4)):
        Shards(folder, "train").verify(part, parts)
    for part, parts in ((1, 2), (0, 3), (3, 4), (0, 1)):
        with pytest.raises(DataError, match=r"train-00003.*labels.*checksum"):
            Shards(folder, "train").verify(part, parts)
