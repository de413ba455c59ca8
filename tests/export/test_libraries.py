"""Two exports of one run, before and after a requeue, are one run to each library, and every value is there once."""

import json
import struct
import sys
from collections.abc import Iterator

import pytest

from hpcopt.export.__main__ import main
from tests.export.conftest import files, need, same
from tests.report.conftest import make_run


def test_tensorboard_reads_one_run(twice, tmp_path):
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    series = twice("tensorboard")
    read = EventAccumulator(str(tmp_path / "known" / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    events = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    same({tag: {event.step: event.value for event in each} for tag, each in events.items()}, series)
    accuracy, moments_s = events["evaluation/test_accuracy"], series["evaluation/test_accuracy"].times_s
    assert [event.wall_time for event in accuracy] == pytest.approx(moments_s.tolist())


def test_mlflow_reads_one_run(twice, tmp_path):
    need("mlflow")
    from mlflow.tracking import MlflowClient

    series = twice("mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'known' / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "hpcopt")
    (run,) = client.search_runs([experiment.experiment_id])
    found = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    same({name: {point.step: point.value for point in points} for name, points in found.items()}, series)
    assert all(len({point.step for point in points}) == len(points) for points in found.values())
    assert run.data.params["solver.lr"] == "0.1"
    assert run.info.status == "FINISHED"


def records(log: bytes) -> Iterator[bytes]:
    """Those of a .wandb file: LevelDB's log behind a header of 7 bytes, blocks of 32 KiB, records in parts."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_reads_one_run(twice, tmp_path):
    need("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    series = twice("wandb")
    found: dict[str, dict[int, float]] = {}
    ids = set()
    for file in files(tmp_path / "known" / "wandb", "*.wandb"):
        for data in records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for name, value in row.items():
                if not name.startswith("_"):
                    found.setdefault(name, {})[int(row["_step"])] = json.loads(value)
    same(found, series)
    assert ids == {json.loads((tmp_path / "known" / "exports.json").read_text())["wandb"]["id"]}


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_library_that_is_not_there_is_one_sentence(kind, tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "known")
    for name in (kind, *(name for name in sys.modules if name.startswith(f"{kind}."))):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([str(tmp_path / "known"), "--to", kind]) == 2
    assert f"pip install {kind}" in capsys.readouterr().err
