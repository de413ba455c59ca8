"""metrics.h5 holds what was given, in one continuous record over restarts, and can be read at any time."""

import json
import random
import shlex
import sys

import h5py
import numpy as np
import pytest

from hpcopt.errors import MetricsError
from hpcopt.store import hdf5, journal
from hpcopt.store.metrics import MetricsFile, read, software
from tests.store.killing import KILLS, kill_while

PHASES = ("data", "forward", "comm")


def block(first: int, count: int, ranks: int, **extra: float):
    step = np.arange(first, first + count)
    columns = {"step": step, "time_s": step / 10, "loss": 1 / step, "samples": step * 32}
    phase_s = step[:, None, None] + np.arange(ranks)[None, :, None] / 8 + np.arange(len(PHASES)) / 64
    sent = step[:, None] * 1000 + np.arange(ranks)
    return (columns | {name: np.full(count, value) for name, value in extra.items()}), phase_s, sent, 2 * sent


@pytest.fixture
def file(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.h5")
    metrics.create(2, PHASES, software() | {"title": "test", "hostnames": ["n1", "n2"], "seed": 3, "absent": None})
    return metrics


def everything(file: h5py.File) -> dict[str, np.ndarray]:
    found = {}
    file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_rows_are_those_that_were_given(file):
    for first, count in ((1, 64), (65, 1), (66, 700)):
        file.append_steps(*block(first, count, 2))
    columns, phase_s, sent, dense = block(1, 765, 2)
    found = read(file.path, everything)
    for name, values in columns.items():
        np.testing.assert_array_equal(found[f"steps/{name}"], values)
    np.testing.assert_array_equal(found["steps/phase_s"], phase_s.astype(np.float32))
    np.testing.assert_array_equal(found["steps/sent_bytes"], sent)
    np.testing.assert_array_equal(found["steps/dense_bytes"], dense)
    assert found["steps/phase"].tolist() == [phase.encode() for phase in PHASES]


def test_columns_that_come_and_go(file):
    file.append_steps(*block(1, 2, 2))
    file.append_steps(*block(3, 2, 2, damping=0.5))
    file.append_steps(*block(5, 1, 2))
    found = read(file.path, everything)
    np.testing.assert_array_equal(found["steps/damping"], [np.nan, np.nan, 0.5, 0.5, np.nan])


@pytest.mark.parametrize("name", ["damping/layer1", "", ".", "rank"])
def test_a_column_that_hdf5_would_take_for_something_else_is_refused_and_nothing_is_written(file, name):
    file.append_steps(*block(1, 3, 2))
    before = file.path.read_bytes()
    with pytest.raises(ValueError, match="cannot be called"):
        file.append_steps(*block(4, 3, 2, **{name: 1.0}))
    with pytest.raises(ValueError, match="cannot be called"):
        file.append_evaluation(3, 0.3, {name: 1.0})
    assert file.path.read_bytes() == before
    file.append_steps(*block(4, 3, 2))


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
def test_a_column_that_is_not_as_long_as_the_steps_is_refused_and_nothing_is_written(file, rows):
    file.append_steps(*block(1, 3, 2))
    before = file.path.read_bytes()
    columns, *others = block(4, 3, 2)
    with pytest.raises(ValueError, match="for 3 rows"):
        file.append_steps({**columns, "residual": np.arange(float(rows))}, *others)
    with pytest.raises(ValueError, match="for 3 rows"):
        file.put_table("layers", [4, 5, 6], {"norm": np.arange(float(rows))})
    assert file.path.read_bytes() == before


@pytest.mark.parametrize("name", ["steps", "starts", "evaluations", "a/b", ""])
def test_a_table_cannot_take_the_place_of_another(file, name):
    with pytest.raises(ValueError, match="cannot be called"):
        file.put_table(name, [1], {"norm": [1.0]})


def test_a_restart_with_phases_that_there_were_not(file):
    file.append_steps(*block(1, 600, 2))
    file.restart(600, 3, {}, phases=("comm", "rollout", "data"))
    columns, phase_s, sent, dense = block(601, 2, 3)
    file.append_steps(columns, phase_s, sent, dense)
    found = read(file.path, everything)
    assert [name.decode() for name in found["steps/phase"]] == [*PHASES, "rollout"]
    np.testing.assert_array_equal(found["steps/phase_s"][:600, :2, :3], block(1, 600, 2)[1].astype(np.float32))
    assert np.isnan(found["steps/phase_s"][:600, :, 3]).all()
    for written, place in ((0, 2), (1, 3), (2, 0)):
        np.testing.assert_array_equal(found["steps/phase_s"][600:, :, place], phase_s[:, :, written].astype(np.float32))
    assert np.isnan(found["steps/phase_s"][600:, :, 1]).all()


def test_evaluations(file):
    file.append_evaluation(10, 1.5, {"test_accuracy": 0.5})
    file.append_evaluation(20, 2.5, {"test_accuracy": 0.75, "test_loss": 0.25})
    found = read(file.path, everything)
    np.testing.assert_array_equal(found["evaluations/step"], [10, 20])
    np.testing.assert_array_equal(found["evaluations/test_accuracy"], [0.5, 0.75])
    np.testing.assert_array_equal(found["evaluations/test_loss"], [np.nan, 0.25])


def test_which_scores_are_better_stands_beside_them(file):
    for step in (10, 20):
        file.append_evaluation(step, 1.5, {"test_mae": 0.5, "other": 1.0}, {"test_mae": "lower", "absent": "higher"})
    found = read(
        file.path, lambda f: {n: hdf5.get_attributes(f["evaluations"][n]).get("better") for n in f["evaluations"]}
    )
    assert found == {"step": None, "time_s": None, "test_mae": "lower", "other": None}


def test_every_table_explains_itself(file):
    file.append_steps(*block(1, 2, 2))

    def check(opened: h5py.File) -> None:
        for name in ("loss", "phase_s", "sent_bytes", "time_s"):
            dataset = opened["steps"][name]
            assert {"units", "long_name"} <= set(dataset.attrs)
            for dim in dataset.dims:
                assert dim[0].name == f"/steps/{dim.label}"
        assert hdf5.get_attributes(opened["steps/time_s"])["units"] == "s"

    read(file.path, check)


def test_provenance_is_at_the_root(file):
    attributes = read(file.path, hdf5.get_attributes)
    assert attributes["title"] == "test"
    assert attributes["hostnames"] == ["n1", "n2"]
    assert attributes["seed"] == 3
    assert attributes["Conventions"] == "HPCOPT-1.0"
    assert "absent" not in attributes
    assert attributes["command_line"] == shlex.join(sys.orig_argv)


def test_only_listed_environment_is_kept(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    found = software()
    assert found["slurm_job_id"] == "17"
    assert json.loads(found["environment"])["SLURM_JOB_ID"] == "17"
    assert "SECRET_TOKEN" not in found["environment"]


def test_a_restart_leaves_one_continuous_record(file):
    file.append_steps(*block(1, 100, 2))
    for step in (50, 100):
        file.append_evaluation(step, step / 10, {"accuracy": step / 200})
    file.finish("told to stop", 85)
    file.restart(60, 2, {"title": "second"})
    assert "outcome" not in read(file.path, hdf5.get_attributes)
    file.append_steps(*block(61, 10, 2))
    file.append_evaluation(70, 7.0, {"accuracy": 0.9})
    found = read(file.path, everything)
    np.testing.assert_array_equal(found["steps/step"], np.arange(1, 71))
    np.testing.assert_array_equal(found["steps/phase_s"], block(1, 70, 2)[1].astype(np.float32))
    np.testing.assert_array_equal(found["evaluations/accuracy"], [0.25, 0.9])
    np.testing.assert_array_equal(found["starts/step"], [0, 60])
    np.testing.assert_array_equal(found["starts/time_s"], [0.0, 6.0])
    assert read(file.path, hdf5.get_attributes)["title"] == "second"
    assert json.loads(found["starts/attributes"][0])["hostnames"] == ["n1", "n2"]


def test_a_restart_before_the_first_row(file):
    file.restart(0, 2, {})
    file.append_steps(*block(1, 3, 2))
    assert len(read(file.path, everything)["steps/step"]) == 3


def test_a_restart_on_more_and_on_fewer_ranks(file):
    file.append_steps(*block(1, 4, 2))
    file.restart(3, 5, {})
    file.append_steps(*block(4, 2, 5))
    file.restart(5, 3, {})
    file.append_steps(*block(6, 2, 3))
    found = read(file.path, everything)
    assert found["steps/phase_s"].shape == (7, 5, 3)
    for rows, ranks in ((slice(0, 3), 2), (slice(3, 5), 5), (slice(5, 7), 3)):
        assert not np.isnan(found["steps/phase_s"][rows, :ranks]).any()
        assert np.isnan(found["steps/phase_s"][rows, ranks:]).all()
        assert (found["steps/sent_bytes"][rows, :ranks] > 0).all()
        assert (found["steps/sent_bytes"][rows, ranks:] == -1).all()
    np.testing.assert_array_equal(found["starts/ranks"], [2, 5, 3])
    np.testing.assert_array_equal(found["steps/rank"], np.arange(5))


def test_finish(file):
    file.finish("all steps done", 0)
    attributes = read(file.path, hdf5.get_attributes)
    assert (attributes["outcome"], attributes["exit_code"]) == ("all steps done", 0)


def test_missing_foreign_and_other_schemas(tmp_path, file):
    with pytest.raises(MetricsError, match="missing"):
        read(tmp_path / "none.h5", everything)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(MetricsError, match="not a metrics file"):
        read(tmp_path / "text.h5", everything)
    with journal.changing(file.path) as opened:
        opened.attrs["schema_version"] = 99
    with pytest.raises(MetricsError, match="schema 99"):
        read(file.path, everything)


def test_damage_is_an_error_or_changes_nothing(file):
    file.append_steps(*block(1, 50, 2))
    whole = file.path.read_bytes()
    expected = read(file.path, everything)
    rng, errors = random.Random(6), 0
    for _ in range(150):
        raw = bytearray(whole)
        if rng.random() < 0.2:
            del raw[rng.randrange(len(raw)) :]
        else:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        file.path.write_bytes(raw)
        try:
            found = read(file.path, everything)
        except MetricsError:
            errors += 1
            continue
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
    assert errors > 20


def consistent(file: h5py.File) -> int:
    found = everything(file)
    columns, phase_s, *_ = block(1, len(found["steps/step"]), 2)
    np.testing.assert_array_equal(found["steps/step"], columns["step"])
    np.testing.assert_array_equal(found["steps/phase_s"], phase_s.astype(np.float32))
    return len(columns["step"])


def test_read_while_written_and_after_kills(file):
    """Readers see whole blocks only, at any moment of an append, and so does whoever comes after a kill."""

    def append_next() -> None:
        with journal.viewing(file.path) as opened:
            done = len(opened["steps/step"])
        file.append_steps(*block(done + 1, 7, 2))

    def read_beside() -> None:
        try:
            seen.append(read(file.path, consistent))
        except MetricsError as error:  # a writer that does nothing else may leave no quiet moment
            assert "changes faster" in str(error)

    rng, seen, interrupted, kill = random.Random(0), [0], 0, 0
    while kill < KILLS or not interrupted:  # until one has hit the middle of an append
        assert kill < 50 * KILLS, "no kill was in the middle of an append"
        journal.recover(file.path)
        kill_while(append_next, rng, read_beside if kill % 10 == 0 else lambda: None)
        interrupted += journal.journal_of(file.path).exists()
        seen.append(read(file.path, consistent))
        assert seen[-1] % 7 == 0
        kill += 1
    assert seen == sorted(seen)
    assert seen[-1] >= 2 * KILLS * 7


def test_choices_are_those_of_each_start(file):
    file.append_steps(*block(1, 20, 2))
    columns = {"bucket": np.arange(2), "bytes": np.array([400, 8]), "predicted_s": np.array([0.5, 0.25])}
    columns["algorithm"] = ["ring", "native"]
    file.put_table("choices", [0, 0], {**columns, "measured_s": np.full(2, np.nan)}, {"calibration": "{}"})
    file.put_table("choices", [0, 0], {**columns, "measured_s": np.array([0.75, 0.125])}, {"calibration": "[]"})
    file.restart(10, 2, {})
    taken = {"algorithm": ["ring", "ring", "native"], "bucket": np.arange(3), "predicted_ring_s": np.ones(3)}
    file.put_table("choices", [10, 10, 10], taken)
    found = read(file.path, everything)
    np.testing.assert_array_equal(found["choices/step"], [0, 0, 10, 10, 10])
    np.testing.assert_array_equal(found["choices/bucket"], [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(found["choices/bytes"], [400, 8, -1, -1, -1])
    np.testing.assert_array_equal(found["choices/measured_s"], [0.75, 0.125, np.nan, np.nan, np.nan])
    assert found["choices/algorithm"].tolist() == [b"ring", b"native", b"ring", b"ring", b"native"]
    units = read(file.path, lambda f: {name: f["choices"][name].attrs["units"] for name in f["choices"]})
    assert units["measured_s"] == units["predicted_ring_s"] == b"s" and units["bytes"] == b"byte"
    file.restart(5, 2, {})
    np.testing.assert_array_equal(read(file.path, everything)["choices/step"], [0, 0])
