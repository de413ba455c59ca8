"""A job that goes on from a checkpoint ends with the bits of one that never stopped; its phases make up its steps."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.on_gpu.rig import Rig, Row, alike, at_least
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.shards import write_shards
from hpcopt.store.weights import newest_weights
from hpcopt.train import main

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.toml"


def rows(rig: Rig) -> Iterator[Row]:
    """Of the smallest job there is."""
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), rig.size(200, 2)
        whole, again = folder / "whole", folder / "again"
        _write_images(folder)
        _train(rig, whole, folder, steps)
        shutil.copytree(whole, again)
        _forget_last(again)
        _train(rig, again, folder, steps)
        ends = [newest_weights(run) for run in (whole, again)]
        states = [end.state_dict for end in ends]
        same = all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        yield alike("parameters of a run that went on half-way", same)
        with h5py.File(whole / "metrics.h5") as file:
            phase_s, step_s = file["steps/phase_s"][1:], file["steps/step_s"][1:]
        share = float(phase_s.sum()) / float(step_s.sum())
        told = "phases, of the steps' time"
        yield at_least(told, share, 0.8) if rig.device.type == "cuda" else Row(told, share)


def _write_images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    attributes = {"scale": 1 / 255, "mean": np.array([0.5]), "std": np.array([0.3]), "classes": list("abcdefghij")}
    for split in ("train", "test"):
        arrays = {"images": draw.integers(0, 256, (128, 1, 8, 8)).astype(np.uint8), "labels": draw.integers(0, 10, 128)}
        write_shards(folder, split, arrays, rows_per_shard=128, attributes=attributes)


def _train(rig: Rig, run: Path, folder: Path, steps: int) -> None:
    settings = [f"workload.data={folder}", f"run.steps={steps}", f"run.evaluate_every={steps}"]
    settings += [f"run.checkpoint_every={steps // 2}", "solver.name=kaisa", "solver.factor_every=1"]
    if rig.device.type in ("cpu", "cuda"):
        settings += [f"run.device={rig.device.type}"]
    words = [word for setting in settings for word in ("--set", setting)]
    with contextlib.redirect_stdout(io.StringIO()):
        if main([str(QUICKSTART), "--run-dir", str(run), *words]) != 0:
            raise RuntimeError(f"the run in {run} failed")


def _forget_last(run: Path) -> None:
    """Leave the checkpoint half-way the newest."""
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    newest, _ = checkpoints.steps()
    shutil.rmtree(checkpoints.path(newest))
