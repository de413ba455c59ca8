"""A checkpoint counts when all of it is there; damage, kills and full folders never yield a wrong one."""

import json
import os
import random

import pytest
import torch

from hpcopt.errors import CheckpointError
from hpcopt.store.checkpoint import LATEST, SHARED, Checkpoints, rank_part, write_tree
from tests.store.killing import KILLS, kill_while

PARTS = [SHARED, rank_part(0), rank_part(1)]


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.begin(step)
    for name in PARTS:
        checkpoints.write_part(step, name, {"step": step, "name": name, "w": torch.full((1000,), float(step))})
    checkpoints.commit(step, PARTS)


def content(checkpoints: Checkpoints, step: int, name: str) -> bool:
    tree = checkpoints.read_part(step, name)
    return tree["step"] == step and tree["name"] == name and bool((tree["w"] == step).all()) and len(tree) == 3


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_parts_come_back(checkpoints):
    save(checkpoints, 5)
    assert checkpoints.steps() == [5]
    assert checkpoints.parts(5) == PARTS
    assert all(content(checkpoints, 5, name) for name in PARTS)
    checkpoints.verify(5)
    assert (checkpoints.folder / LATEST).read_text() == "step_00000005\n"


def test_the_newest_are_kept(checkpoints):
    for step in (3, 10, 123456789, 20):
        save(checkpoints, step)
    assert checkpoints.steps() == [123456789, 20]
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [LATEST, "step_00000020", "step_123456789"]


def test_none_yet(checkpoints):
    assert checkpoints.steps() == []
    with pytest.raises(CheckpointError, match="missing"):
        checkpoints.read_part(1, SHARED)


def test_uncommitted_does_not_count_and_is_removed(checkpoints):
    save(checkpoints, 1)
    checkpoints.begin(2)
    checkpoints.write_part(2, SHARED, 1)
    assert checkpoints.steps() == [1]
    save(checkpoints, 3)
    assert checkpoints.steps() == [3, 1]
    assert not list(checkpoints.folder.glob("*.tmp"))


def test_commit_without_a_part(checkpoints):
    checkpoints.begin(2)
    checkpoints.write_part(2, SHARED, 1)
    with pytest.raises(CheckpointError, match="rank00001"):
        checkpoints.commit(2, [SHARED, rank_part(1)])
    assert checkpoints.steps() == []


def test_the_same_step_again_replaces(checkpoints):
    save(checkpoints, 4)
    checkpoints.begin(4)
    checkpoints.write_part(4, SHARED, "second")
    checkpoints.commit(4, [SHARED])
    assert checkpoints.read_part(4, SHARED) == "second"
    assert checkpoints.parts(4) == [SHARED]
    assert len(list(checkpoints.folder.iterdir())) == 2


@pytest.mark.parametrize("name", ["step_00000001", "step_00000002", "step_00000002.tmp", "step_00000002.old.tmp"])
def test_a_fifo_for_a_folder_is_removed_like_one(checkpoints, name):
    checkpoints.folder.mkdir(parents=True)
    os.mkfifo(checkpoints.folder / name)
    for step in (2, 3):
        save(checkpoints, step)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [LATEST, "step_00000002", "step_00000003"]


def test_an_unknown_part(checkpoints):
    save(checkpoints, 4)
    with pytest.raises(CheckpointError, match="knows no part rank00007, only shared"):
        checkpoints.read_part(4, rank_part(7))


def test_a_part_of_another_checkpoint(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 2)
    (checkpoints.path(1) / "shared.h5").replace(checkpoints.path(2) / "shared.h5")
    with pytest.raises(CheckpointError, match="not the file"):
        checkpoints.read_part(2, SHARED)


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="--run-dir"):
        Checkpoints(tmp_path / "file", 1).begin(1)


@pytest.mark.parametrize("damage", ["missing", "empty", "{}", '{"schema_version": 99, "step": 6, "parts": {}}', "[1]"])
def test_damaged_manifests(checkpoints, damage):
    save(checkpoints, 6)
    path = checkpoints.path(6) / "manifest.json"
    path.unlink() if damage == "missing" else path.write_text("" if damage == "empty" else damage)
    for call in (checkpoints.parts, checkpoints.verify, lambda step: checkpoints.read_part(step, SHARED)):
        with pytest.raises(CheckpointError, match=r"manifest\.json is (missing|damaged)"):
            call(6)


def test_two_hundred_damaged_files(checkpoints):
    """Truncated, flipped, removed, replaced: the value that was written, or an error that names the file."""
    save(checkpoints, 6)
    rng = random.Random(4)
    files = [path for path in checkpoints.path(6).iterdir() if path.is_file()]
    whole = {path: path.read_bytes() for path in files}
    errors = 0
    for _ in range(200):
        path = rng.choice(files)
        raw = bytearray(whole[path])
        match rng.choice(["truncate", "flip", "burst", "remove", "other schema"]):
            case "truncate":
                path.write_bytes(raw[: rng.randrange(len(raw))])
            case "flip":
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                path.write_bytes(raw)
            case "burst":
                first = rng.randrange(len(raw))
                path.write_bytes(raw[:first] + rng.randbytes(min(512, len(raw) - first)) + raw[first + 512 :])
            case "remove":
                path.unlink()
            case "other schema":
                write_tree(path, {"something": "else"})
        for name in PARTS:
            try:
                assert content(checkpoints, 6, name)
            except CheckpointError as error:
                assert path.name in str(error)
                errors += 1
        path.write_bytes(whole[path])
    assert errors > 100
    checkpoints.verify(6)


def test_kills_at_any_moment_leave_the_last_good_one(checkpoints):
    def save_next() -> None:
        save(checkpoints, max([0, *checkpoints.steps()]) + 1)

    rng, done, unfinished = random.Random(0), 0, 0
    for _ in range(KILLS):
        kill_while(save_next, rng)
        unfinished += bool(list(checkpoints.folder.glob("*.tmp")))
        steps = checkpoints.steps()
        for step in steps:
            assert json.loads((checkpoints.path(step) / "manifest.json").read_text())["step"] == step
            assert all(content(checkpoints, step, name) for name in PARTS)
        assert steps[0] >= done + 2
        done = steps[0]
    assert unfinished > KILLS // 5
