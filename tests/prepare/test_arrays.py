"""Arrays and tables become shards, which a job reads back; what is no table of numbers is named."""

import numpy as np
import pytest
import torch

from hpcopt.errors import DataError
from hpcopt.prepare.__main__ import main
from hpcopt.prepare.arrays import table
from hpcopt.store.shards import Shards
from hpcopt.workloads.own.arrays import Arrays


def test_an_archive_of_arrays_becomes_shards_and_comes_back(tmp_path, capsys):
    draw = np.random.default_rng(0)
    made = {}
    for split, rows in (("train", 30), ("test", 7)):
        made[split] = {"x": draw.standard_normal((rows, 2, 3)).astype("f4"), "y": draw.integers(0, 4, rows)}
        np.savez(tmp_path / f"{split}.npz", **made[split])
    files = ["--train", str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz")]
    command = ["arrays", *files, "--data-dir", str(tmp_path), "--name", "mine"]
    assert main(command) == 0
    assert "30 train, 7 test rows of x, y" in capsys.readouterr().out
    for split, arrays in made.items():
        Shards(tmp_path / "mine", split).verify()
        data = Arrays(str(tmp_path / "mine"), split, ["x"], "y")
        assert len(data) == len(arrays["y"])
        for row in (0, len(data) - 1):
            x, y = data[row]
            assert torch.equal(x, torch.from_numpy(arrays["x"])[row]) and int(y) == arrays["y"][row]
    assert main(command) == 2
    assert "is there already: --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


def test_a_table_is_a_vector_of_its_columns(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("a, b, label\n1,2,0\n3,4.5,1\n")
    files = ["--train", str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv")]
    assert main(["arrays", *files, "--data-dir", str(tmp_path)]) == 0
    x, y = Arrays(str(tmp_path / "arrays"), "train", ["a", "b"], "label")[1]
    assert x.tolist() == [3, 4.5] and float(y) == 1
    with pytest.raises(DataError, match="has a, b, label, not c"):
        Arrays(str(tmp_path / "arrays"), "train", ["c"], "label")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npz", lambda p: np.savez(p, x=np.zeros(3), y=np.zeros(2)), "the same number of rows"),
        ("a.npy", lambda p: np.save(p, np.zeros((0, 2))), "the same number of rows, at least one"),
        ("a.npy", lambda p: np.save(p, np.array(["a", "b"])), "x is <U1"),
        ("a.npy", lambda p: np.save(p, np.array([{}]), allow_pickle=True), "cannot read"),
        ("a.csv", lambda p: p.write_text("a,b\n1,2\nx,3\n"), "cannot read .*a.csv: could not convert"),
        ("a.csv", lambda p: p.write_text("a,b\n1\n2\n"), "names 2 columns, and there are 1"),
        ("a.txt", lambda p: p.write_text("1"), "none of .npz"),
        ("a.npz", lambda p: None, "No such file"),
    ],
)
def test_what_is_no_table_of_numbers(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        table(tmp_path / name)


def test_files_that_do_not_go_together(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)))
    assert main(["arrays", "--train", f"{tmp_path}/a.npz", "--test", f"{tmp_path}/b.npz"]) == 2
    assert "both need the same" in capsys.readouterr().err
