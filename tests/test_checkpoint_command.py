"""The checkpoint command: what it lists is there, what it exports is the model, what it calls the same is the same."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcopt.checkpoint import main
from hpcopt.store.checkpoint import SHARED, Checkpoints, rank_part


def save(folder, step: int, model: torch.nn.Module, **more: object) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", keep=5)
    checkpoints.begin(step)
    shared = {"position": {"step": step}, "solver": {"model": model.state_dict(), "lr": 0.1, **more}}
    checkpoints.write_part(step, SHARED, shared)
    checkpoints.write_part(step, rank_part(0), {"rng": np.arange(5)})
    checkpoints.commit(step, [SHARED, rank_part(0)])
    return checkpoints


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def test_ls_of_a_run_lists_checkpoints(tmp_path, model, capsys):
    save(tmp_path, 5, model)
    checkpoints = save(tmp_path, 40, model)
    (checkpoints.path(5) / "manifest.json").write_text("{")
    assert main(["ls", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step_00000005  ")
    assert "damaged" in first
    assert "2 parts" in second


def test_a_reader_that_leaves_ends_it_quietly(tmp_path, model):
    save(tmp_path, 5, model)
    command = [sys.executable, "-m", "hpcopt.checkpoint", "ls", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def test_ls_of_a_checkpoint_lists_values(tmp_path, model, capsys):
    path = save(tmp_path, 5, model).path(5)
    assert main(["ls", str(path)]) == 0
    out = capsys.readouterr().out
    assert "  solver.model.0.weight  float32 (3, 4)\n" in out
    assert "  solver.lr  0.1\n" in out
    assert "rank00000:\n  rng  int64 (5)\n" in out
    assert main(["ls", str(path / "rank00000.h5")]) == 0
    assert capsys.readouterr().out == "rng  int64 (5)\n"


def test_verify_names_what_is_damaged(tmp_path, model, capsys):
    checkpoints = save(tmp_path, 5, model)
    save(tmp_path, 6, model)
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "step_00000005  whole\nstep_00000006  whole\n"
    part = checkpoints.path(6) / "shared.h5"
    raw = bytearray(part.read_bytes())
    raw[-20] ^= 1
    part.write_bytes(raw)
    assert main(["verify", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "step_00000005  whole" in out
    assert f"{part} is damaged" in out
    assert main(["verify", str(checkpoints.path(5) / "shared.h5")]) == 0
    assert main(["verify", str(part)]) == 2


@pytest.mark.parametrize(("name", "load"), [("m.safetensors", load_file), ("m.pt", torch.load)])
def test_an_export_is_the_newest_model(tmp_path, model, name, load):
    save(tmp_path, 5, torch.nn.Linear(2, 2))
    save(tmp_path, 6, model)
    assert main(["export", str(tmp_path), str(tmp_path / name)]) == 0
    found = load(tmp_path / name)
    assert set(found) == set(model.state_dict())
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_exports_that_cannot_be(tmp_path, model, capsys):
    save(tmp_path, 6, model)
    for arguments, text in (
        (["m.bin"], "name a .safetensors, .h5 or .pt"),
        (["m.pt", "--key", "solver.models"], "no `models` of --key solver.models"),
        (["m.pt", "--key", "position"], "no tensors"),
    ):
        assert main(["export", str(tmp_path), str(tmp_path / arguments[0]), *arguments[1:]]) == 2
        assert text in capsys.readouterr().err


def test_diff(tmp_path, model, capsys):
    save(tmp_path / "a", 5, model, nan=float("nan"), only=1)
    save(tmp_path / "b", 9, model, nan=float("nan"))
    with torch.no_grad():
        model[0].weight[1, 2] += 0.5
    save(tmp_path / "c", 9, model, nan=float("nan"))
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    same, *rest = capsys.readouterr().out.splitlines()
    assert same == "no difference"
    assert rest == ["shared: position.step: 5 and 9", "shared: solver.only: 1 and absent"]
    assert main(["diff", str(tmp_path / "b"), str(tmp_path / "c")]) == 1
    assert capsys.readouterr().out == "shared: solver.model.0.weight: 1 of 12 values differ, by at most 0.5\n"


def test_diff_of_odd_values(tmp_path, capsys):
    for name, tree in (("a", {"x": torch.zeros(3).bfloat16(), "y": [1]}), ("b", {"x": torch.zeros(2), "y": []})):
        checkpoints = Checkpoints(tmp_path / name, 1)
        checkpoints.begin(1)
        checkpoints.write_part(1, SHARED, tree)
        checkpoints.commit(1, [SHARED])
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    out = capsys.readouterr().out
    assert "x: bfloat16 (3) and float32 (2)" in out
    assert "y.0: 1 and absent" in out


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_nothing_there(tmp_path, capsys, command):
    assert main([command, str(tmp_path)]) == 2
    assert "no checkpoint in" in capsys.readouterr().err


def test_two_runs_that_differ_in_time_alone_are_the_same(tmp_path, model, capsys):
    paths = []
    for name, seconds in (("a", 1.0), ("b", 2.5)):
        checkpoints = Checkpoints(tmp_path / name, keep=1)
        checkpoints.begin(5)
        tree = {"position": {"step": 5, "elapsed_s": seconds}, "solver": {"model": model.state_dict()}}
        checkpoints.write_part(5, SHARED, tree)
        paths.append(str(checkpoints.commit(5, [SHARED])))
    assert main(["diff", *paths]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_verify_says_what_can_be_had_all_the_same(tmp_path, model, capsys):
    save(tmp_path, 5, model)
    checkpoints = save(tmp_path, 6, model)
    part = checkpoints.path(6) / "rank00000.h5"
    part.write_bytes(part.read_bytes()[:-3])
    assert main(["verify", str(tmp_path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step_00000005  whole"
    assert lines[1].startswith(f"step_00000006  {part} is damaged")
    command = lines[2].partition("`hpcopt checkpoint ")[2].partition("`")[0].replace("FILE", str(tmp_path / "m.pt"))
    assert lines[3] == "training goes on from step_00000005"
    assert main(command.split()) == 0
    assert torch.equal(torch.load(tmp_path / "m.pt")["0.weight"], model[0].weight)


def test_an_export_that_cannot_be_written_is_one_message(tmp_path, model, capsys):
    save(tmp_path, 5, model)
    for name in ("m.pt", "m.safetensors"):
        assert main(["export", str(tmp_path), str(tmp_path / "nowhere" / name)]) == 2
        assert "cannot write" in capsys.readouterr().err


def test_escape_codes_do_not_reach_the_terminal(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.begin(5)
    checkpoints.write_part(5, SHARED, {"\x1b[2J": 1, "text": "\x1b[31m"})
    path = checkpoints.commit(5, [SHARED])
    assert main(["ls", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
