"""What is written in the background is the state at the time of the call."""

import threading

import numpy as np
import pytest
import torch

from hpcopt.errors import CheckpointError
from hpcopt.store.background import BackgroundWriter, Snapshot
from hpcopt.store.checkpoint import Checkpoints
from tests.launching import PATIENCE_S
from tests.store.test_tree import random_tree, same


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=3)


def test_changes_after_the_call_are_not_written(checkpoints):
    state = {"w": torch.zeros(100_000), "n": np.zeros(1000), "list": [torch.zeros(3)]}
    writer = BackgroundWriter(checkpoints)
    for step in (1, 2, 3):
        checkpoints.begin(step)
        writer.write(step, {"shared": state})
        for tensor in (state["w"], state["n"], state["list"][0]):
            tensor += 1
        state["list"].append(torch.ones(step))
        writer.wait()
        checkpoints.commit(step, ["shared"])
    for step in (1, 2, 3):
        found = checkpoints.read_part(step, "shared")
        assert (found["w"] == step - 1).all()
        assert (found["n"] == step - 1).all()
        assert len(found["list"]) == step


def test_the_call_returns_before_the_file_is_written(checkpoints, monkeypatch):
    gate = threading.Event()
    written = checkpoints.write_part
    monkeypatch.setattr(checkpoints, "write_part", lambda *a: (gate.wait(PATIENCE_S), written(*a)))
    writer = BackgroundWriter(checkpoints)
    checkpoints.begin(1)
    writer.write(1, {"shared": 5})
    assert writer.busy
    with pytest.raises(CheckpointError, match="missing"):
        checkpoints.commit(1, ["shared"])
    gate.set()
    writer.wait()
    assert not writer.busy
    checkpoints.commit(1, ["shared"])
    assert checkpoints.read_part(1, "shared") == 5


def test_what_stands_still_is_copied_later(checkpoints, monkeypatch):
    """The call returns before, copied() after, and what else there is has been copied by then."""
    gate, complete = threading.Event(), Snapshot.complete
    monkeypatch.setattr(Snapshot, "complete", lambda self: (gate.wait(PATIENCE_S), complete(self)))
    state = {"still": torch.zeros(3, 4), "view": torch.zeros(7), "moving": torch.zeros(5), "empty": torch.zeros(0)}
    writer = BackgroundWriter(checkpoints)
    for step in (1, 2):
        gate.clear()
        checkpoints.begin(step)
        writer.write(step, {"shared": state}, [state["still"].view(-1), state["view"]])
        state["moving"] += 1
        threading.Timer(0.05, gate.set).start()
        writer.copied()
        assert gate.is_set()
        state["still"] += 1
        state["view"] += 1
        writer.wait()
        checkpoints.commit(step, ["shared"])
        assert all((value == step - 1).all() for value in checkpoints.read_part(step, "shared").values())


def test_a_failed_copy_is_told_before_the_originals_change(checkpoints):
    writer = BackgroundWriter(checkpoints)
    weight = torch.zeros(4)
    checkpoints.begin(1)
    writer._snapshot.complete = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    writer.write(1, {"shared": weight}, [weight])
    with pytest.raises(ZeroDivisionError):
        writer.copied()


def test_a_failure_is_told_once(checkpoints):
    writer = BackgroundWriter(checkpoints)
    writer.write(7, {"shared": 1})  # begin() was forgotten, so there is no folder
    with pytest.raises(CheckpointError, match="cannot write"):
        writer.wait()
    writer.wait()


def test_a_failure_is_told_by_the_next_write(checkpoints):
    writer = BackgroundWriter(checkpoints)
    writer.write(7, {"shared": 1})
    with pytest.raises(CheckpointError, match="cannot write"):
        writer.write(8, {"shared": 1})


def test_snapshots_equal_their_trees():
    import random

    rng, snapshot = random.Random(1), Snapshot()
    for _ in range(50):
        tree = random_tree(rng, 5)
        assert same(tree, snapshot.take(tree))


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.ones(2, device="meta")])
def test_a_tensor_without_values_in_a_row_is_left_to_what_refuses_it(checkpoints, tensor):
    checkpoints.begin(7)
    writer = BackgroundWriter(checkpoints)
    writer.write(7, {"shared": {"mine": tensor}})
    with pytest.raises(CheckpointError, match=r"tree\['mine'\]: a checkpoint cannot hold Tensor"):
        writer.wait()


def test_memory_is_used_again():
    snapshot = Snapshot()
    tree = [torch.zeros(10), torch.ones(5)]
    first = [t.data_ptr() for t in snapshot.take(tree)]
    assert [t.data_ptr() for t in snapshot.take(tree)] == first
    other = snapshot.take([torch.zeros(10), torch.ones(6)])
    assert other[0].data_ptr() == first[0]
    assert torch.equal(other[1], torch.ones(6))


def test_nothing_is_being_written_after_the_end(checkpoints, monkeypatch):
    begun, gate, done = threading.Event(), threading.Event(), []
    monkeypatch.setattr(
        checkpoints, "write_part", lambda step, *_: (begun.set(), gate.wait(PATIENCE_S), done.append(step))
    )
    writer = BackgroundWriter(checkpoints)
    writer.write(1, {"shared": 5})
    begun.wait(PATIENCE_S)
    threading.Timer(0.05, gate.set).start()
    writer.close()
    assert done == [1]
