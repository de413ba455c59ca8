"""Preparing is done once, mends what is damaged, and says what went wrong."""

import pytest

from hpcopt.errors import DataError
from hpcopt.prepare import SOURCES, is_prepared, prepare
from hpcopt.prepare.__main__ import main
from hpcopt.store.shards import shard_path


def test_the_second_time_does_nothing(tmp_path, capsys):
    assert main(["digits", "--data-dir", str(tmp_path)]) == 0
    assert "prepared, 1,437 train, 360 test rows" in capsys.readouterr().out
    path = shard_path(tmp_path / "digits", "train", 0)
    before = path.stat().st_mtime_ns
    assert main(["digits", "--data-dir", str(tmp_path)]) == 0
    assert "already there" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    assert main(["digits", "--data-dir", str(tmp_path), "--force"]) == 0
    assert path.stat().st_mtime_ns > before


def test_damage_is_mended(tmp_path):
    folder = prepare("digits", tmp_path)
    path = shard_path(folder, "train", 0)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)
    assert not is_prepared("digits", tmp_path)
    prepare("digits", tmp_path)
    assert is_prepared("digits", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_unknown_name(tmp_path):
    with pytest.raises(DataError, match="choose one of digits"):
        prepare("mnist", tmp_path)


def test_a_data_dir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["digits", "--data-dir", str(tmp_path / "file")]) == 2
    assert "--data-dir" in capsys.readouterr().err


def test_another_job_that_was_first_keeps_its_files(tmp_path, monkeypatch):
    read = SOURCES["digits"]
    first = []

    def overtaken(source):
        monkeypatch.setitem(SOURCES, "digits", read)
        first.append(prepare("digits", tmp_path).stat().st_ino)
        return read(source)

    monkeypatch.setitem(SOURCES, "digits", overtaken)
    folder = prepare("digits", tmp_path)
    assert [folder.stat().st_ino] == first
    assert is_prepared("digits", tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
