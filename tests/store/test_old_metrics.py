"""A metrics.h5 as hpcopt once wrote it, schema 1: reports read it, and a run goes on with it."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.store import journal
from hpcopt.store.metrics import MetricsFile

PHASES = ("data", "forward", "exchange")
STEPS, RANKS = 5, 2


def column(group: h5py.Group, name: str, values: object, dims: tuple[str, ...] = ("step",)) -> None:
    data = np.asarray(values)
    text = data.dtype.kind == "U"
    dataset = group.create_dataset(
        name,
        data=data.astype(object) if text else data,
        dtype=h5py.string_dtype() if text else data.dtype,
        maxshape=tuple(None if dim != "phase" else len(PHASES) for dim in dims),
        chunks=(512, *data.shape[1:]),
        fillvalue=None if text else -1 if data.dtype.kind == "i" else np.nan,
    )
    dataset.attrs["units"], dataset.attrs["long_name"] = "1", name
    if name == "step":
        dataset.make_scale("step")
    for dim, label in zip(dataset.dims, dims, strict=True):
        dim.label = label
        if label != name:
            dim.attach_scale(group[label])


@pytest.fixture
def old(tmp_path) -> Path:
    """Written with nothing of today's writer."""
    path = tmp_path / "metrics.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        config = {"run": {"name": "old"}, "workload": {"name": "images", "batch": 32}}
        for name, value in {"Conventions": "HPCOPT-1.0", "title": "old", "config": json.dumps(config)}.items():
            file.attrs[name] = np.bytes_(value)
        file.attrs["schema_version"], file.attrs["ranks"] = 1, RANKS
        file.attrs["date_created"] = np.bytes_("2026-01-01T00:00:00+00:00")
        steps = file.create_group("steps")
        step = np.arange(1, STEPS + 1)
        column(steps, "step", step)
        steps.create_dataset("phase", data=np.array([phase.encode() for phase in PHASES]))
        steps.create_dataset("rank", data=np.arange(RANKS), maxshape=(None,), chunks=(1024,))
        for name in ("phase", "rank"):
            steps[name].make_scale(name)
        for name, values in {
            "time_s": step / 10,
            "step_s": 0 * step + 0.1,
            "loss": 1 / step,
            "samples": 32 * step,
        }.items():
            column(steps, name, values)
        column(steps, "phase_s", np.full((STEPS, RANKS, 3), 0.03, np.float32), ("step", "rank", "phase"))
        for name in ("sent_bytes", "dense_bytes"):
            column(steps, name, np.full((STEPS, RANKS), 100), ("step", "rank"))
        for name, values in {"step": [5], "time_s": [0.5], "perplexity": [3.0]}.items():
            column(file.require_group("evaluations"), name, values)
        start = {"step": [0], "ranks": [RANKS], "time_s": [0.0], "date_created": ["2026"], "reason": ["first start"]}
        for name, values in {**start, "attributes": ["{}"]}.items():
            column(file.require_group("starts"), name, values)
        for name, values in {"step": [0], "bucket": [0], "bytes": [8], "algorithm": ["ring"]}.items():
            column(file.require_group("choices"), name, values)
    return path


def test_a_report_reads_it(old):
    run = read_run(old)
    assert run.phases == PHASES
    assert run.choices["algorithm"].tolist() == [b"ring"]
    summary = summarise(run)
    assert (summary.steps, summary.loss, summary.scores) == (5, 0.2, {"perplexity": 3.0})
    assert (run.better, run.guessed) == ({"perplexity": "lower"}, ("perplexity",))


def test_a_run_goes_on_with_it(old):
    file = MetricsFile(old)
    file.restart(3, RANKS, {}, phases=PHASES)
    append(file, PHASES)
    with journal.viewing(old) as opened:
        assert opened.attrs["schema_version"] == 1  # nothing in it is of another kind
    run = read_run(old)
    assert run.phases == PHASES and run.columns["step"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(run.phase_s[3], [0.5, 0.5, 0.5])


def test_a_run_with_phases_of_its_own_goes_on_with_it(old):
    file = MetricsFile(old)
    file.restart(3, RANKS, {}, phases=(*PHASES, "rollout"))
    append(file, (*PHASES, "rollout"))
    file.put_table("choices", [3], {"bucket": [0], "bytes": [8], "algorithm": ["native"]})
    with xarray.open_dataset(old, group="steps", engine="h5netcdf") as steps:
        np.testing.assert_array_equal(steps["phase_s"].sel(phase="rollout", rank=0), [np.nan] * 3 + [0.5])
        np.testing.assert_array_equal(steps["phase_s"].sel(phase="data", rank=1), np.float32([0.03] * 3 + [0.5]))
    run = read_run(old)
    assert run.attributes["schema_version"] == 2
    assert run.choices["algorithm"].tolist() == [b"native"]


def append(file: MetricsFile, phases: tuple[str, ...]) -> None:
    columns = {"step": np.array([4]), "time_s": np.array([0.4]), "loss": np.array([0.25]), "samples": np.array([128])}
    file.append_steps(
        columns, np.full((1, RANKS, len(phases)), 0.5), np.ones((1, RANKS), int), np.ones((1, RANKS), int)
    )
