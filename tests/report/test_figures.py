"""Every plot shows the numbers of its runs, and says how they came about."""

import csv
import json

import numpy as np
import pytest

from hpcopt.report import extra_p
from hpcopt.report.__main__ import main
from hpcopt.report.figures import figures_of
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.store.metrics import MetricsFile
from tests.report.conftest import append, make_run


@pytest.fixture
def runs(run_dir, tmp_path):
    file = make_run(tmp_path / "other", lr=0.3, ranks=2)
    file.restart(30, 2, {})
    append(file, 30, 15, 2)
    file.finish("done", 0, np.array([5e8, 6e8]))
    return [(run, summarise(run)) for run in map(read_run, (run_dir, tmp_path / "other"))]


def test_which_plots_there_are(runs):
    names = [figure.name for figure in figures_of(runs)]
    assert names == [
        "loss", "test_accuracy", "test_loss", "phases", "bytes", "memory", "waiting-known", "waiting-other"
    ]  # fmt: skip


def test_the_numbers_are_the_runs_own(runs):
    figures = {figure.name: figure for figure in figures_of(runs)}
    loss = figures["loss"].table
    mine = [i for i, name in enumerate(loss["run"]) if name == "known"]
    assert [loss["loss"][i] for i in mine] == (1 / np.arange(1, 41)).tolist()
    assert [loss["sent_bytes"][i] for i in mine] == (300 * np.arange(1, 41)).tolist()
    accuracy = figures["test_accuracy"].table
    assert (accuracy["step"], accuracy["sent_bytes"]) == ([20, 40], [300 * 20, 300 * 40])
    assert figures["phases"].table["exchange_s"] == pytest.approx([0.005, 0.005])
    assert figures["memory"].table["peak_memory_bytes"] == [500_000_000, 600_000_000]
    np.testing.assert_allclose(figures["waiting-known"].table["rank2_s"], 0.005, rtol=1e-6)
    marks = [trace for trace in figures["loss"].data if trace.get("hovertext") == "restart"]
    assert [trace["name"] for trace in marks] == [marks[0]["name"]] * 3  # on its own curve, against each axis
    assert "shapes" not in figures["loss"].layout


def test_every_plot_is_strict_json_with_a_definition_and_a_full_table(runs):
    for figure in figures_of(runs):
        json.dumps([figure.data, figure.layout], allow_nan=False)
        assert len(figure.definition) > 20
        assert len({len(column) for column in figure.table.values()}) == 1


def test_losses_that_are_not_finite_leave_gaps(tmp_path):
    file = make_run(tmp_path / "r", steps=30)
    file.append_steps(
        {"step": np.arange(31, 33), "loss": np.array([np.nan, np.inf])}, *(np.ones((2, 3, k)) for k in (4,)),
        *(np.ones((2, 3)) for _ in range(2)),
    )  # fmt: skip
    run = read_run(tmp_path / "r")
    (loss, *_) = figures_of([(run, summarise(run))])
    assert loss.data[0]["y"][-2:] == [1 / 30, None]  # what is not known is no point, what is infinite a gap


def test_collectives_as_predicted_and_as_measured(run_dir):
    file = MetricsFile(run_dir / "metrics.h5")
    columns = {"bucket": np.arange(3), "bytes": np.array([4, 8, 12]), "predicted_s": np.array([0.5, 1, 2])}
    columns |= {"algorithm": ["ring", "vote", "ring"], "measured_s": np.array([0.25, np.nan, 3])}
    file.put_table("choices", [0, 0, 0], columns)
    run = read_run(run_dir)
    figure = next(f for f in figures_of([(run, summarise(run))]) if f.name == "collectives")
    assert figure.table == {
        "run": ["known"] * 2,
        "bucket": [0, 2],
        "bytes": [4, 12],
        "algorithm": ["ring", "ring"],
        "predicted_s": [0.5, 2.0],
        "measured_s": [0.25, 3.0],
    }
    assert (figure.data[0]["x"], figure.data[0]["y"]) == ([0.5, 2.0], [0.25, 3.0])


def test_repeats_share_a_bar_and_a_colour(tmp_path):
    runs = []
    for seed in range(3):
        for ranks in (2, 4):
            config = json.dumps({"run": {"name": "known", "seed": seed}, "workload": {"batch": 8}})
            make_run(tmp_path / f"{ranks}-{seed}", ranks=ranks, config=config)
            run = read_run(tmp_path / f"{ranks}-{seed}")
            runs.append((run, summarise(run)))
    figures = {figure.name: figure for figure in figures_of(runs)}
    assert figures["phases"].table["run"] == ["known, 2 ranks", "known, 4 ranks"]
    assert figures["phases"].table["exchange_s"] == pytest.approx([0.005, 0.005])
    assert figures["bytes"].table["sent_bytes"] == [200.0, 400.0]
    assert len(figures["loss"].data) == 6 * 3
    assert len({trace["line"]["color"] for trace in figures["loss"].data}) == 2
    assert sum(trace["showlegend"] for trace in figures["loss"].data) == 2


def test_tables_on_disk(runs, run_dir, tmp_path):
    assert main([str(run_dir), "--tables", str(tmp_path / "tables")]) == 0
    rows = list(csv.DictReader((tmp_path / "tables" / "bytes.csv").open()))
    assert rows == [{"run": "known", "sent_bytes": "300.0", "dense_bytes": "1200.0"}]


def test_extra_p_takes_runs_of_equal_ranks_as_repeats(tmp_path):
    runs = []
    for index, ranks in enumerate((2, 2, 3)):
        make_run(tmp_path / str(index), ranks=ranks)
        run = read_run(tmp_path / str(index))
        runs.append((run, summarise(run)))
    lines = [json.loads(line) for line in extra_p.as_json_lines(runs).splitlines()]
    steps = {line["params"]["p"]: line["value"] for line in lines if line["callpath"] == "step"}
    assert steps[2] == pytest.approx([0.012, 0.012])
    assert steps[3] == pytest.approx([0.012])
    assert {line["callpath"] for line in lines} > {"step->exchange", "step->forward"}
