"""Other programs can read the files: xarray with h5netcdf, and h5py with nothing but docs/reference/format.md."""

import re
from pathlib import Path

import h5py
import numpy as np
import torch
import xarray

from hpcopt.prepare import prepare
from hpcopt.store import hdf5
from hpcopt.store.metrics import read
from hpcopt.store.shards import shard_path
from hpcopt.store.tree import write_tree
from tests.store.test_metrics import PHASES, block
from tests.store.test_metrics import file as metrics_file

FORMAT = Path(__file__).parents[2] / "docs" / "reference" / "format.md"
__all__ = ["metrics_file"]


def test_metrics_in_xarray(metrics_file):
    metrics_file.append_steps(*block(1, 70, 2))
    metrics_file.append_evaluation(70, 7.0, {"test_accuracy": 0.5})
    columns, phase_s, sent, _ = block(1, 70, 2)
    with xarray.open_dataset(metrics_file.path, group="steps", engine="h5netcdf") as steps:
        assert steps["phase_s"].dims == ("step", "rank", "phase")
        assert set(steps.coords) == {"step", "rank", "phase"}
        np.testing.assert_array_equal(steps["phase_s"], phase_s.astype(np.float32))
        np.testing.assert_array_equal(steps["sent_bytes"].sel(step=12, rank=1), sent[11, 1])
        np.testing.assert_array_equal(steps["loss"], columns["loss"])
        assert list(steps["phase"].values) == list(PHASES)
        np.testing.assert_array_equal(steps["phase_s"].sel(phase="comm", rank=0), phase_s[:, 0, 2].astype(np.float32))
    for group in ("evaluations", "starts"):
        with xarray.open_dataset(metrics_file.path, group=group, engine="h5netcdf") as table:
            assert table.sizes["step"] == 1


def test_phases_that_came_with_a_restart_are_selected_in_xarray(metrics_file):
    metrics_file.append_steps(*block(1, 4, 2))
    metrics_file.restart(4, 2, {}, phases=(*PHASES[:2], "rollout"))
    metrics_file.append_steps(*block(5, 2, 2))
    with xarray.open_dataset(metrics_file.path, group="steps", engine="h5netcdf") as steps:
        assert steps["phase_s"].dims == ("step", "rank", "phase")
        rollout = steps["phase_s"].sel(phase="rollout", rank=1, step=[4, 5])
        np.testing.assert_array_equal(rollout, [np.nan, np.float32(block(5, 1, 2)[1][0, 1, 2])])


def test_shards_in_xarray(tmp_path):
    folder = prepare("digits", tmp_path)
    with xarray.open_dataset(shard_path(folder, "test", 0), engine="h5netcdf", phony_dims="sort") as shard:
        assert shard["images"].shape == (360, 1, 8, 8)
        assert shard.attrs["split"] == "test"


def test_the_example_reads_a_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "step_00001234").mkdir()
    tree = [torch.arange(6.0).reshape(2, 3), torch.ones(4), np.arange(3)]
    write_tree(tmp_path / "step_00001234" / "shared.h5", tree)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    found: list[np.ndarray] = []
    exec(example + "\n        found.append(values)\n", {"found": found})
    for values, expected in zip(found, tree, strict=True):
        np.testing.assert_array_equal(values, np.asarray(expected))


def test_every_attribute_of_a_run_is_documented(metrics_file):
    documented = set(re.findall(r"`(\w+)`", FORMAT.read_text()))
    assert set(read(metrics_file.path, hdf5.get_attributes)) - documented == set()


def test_files_are_of_hdf5_1_10(metrics_file, tmp_path):
    write_tree(tmp_path / "t.h5", [1])
    for path in (metrics_file.path, tmp_path / "t.h5"):
        with h5py.File(path) as file:
            assert file.id.get_create_plist().get_version()[0] == 3
