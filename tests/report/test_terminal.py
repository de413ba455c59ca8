"""What a person sees."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hpcopt.report.__main__ import main
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.report.terminal import several, sparkline
from hpcopt.report.text import duration, size
from tests.report.conftest import append, make_run


def test_one_run(run_dir, capsys):
    assert main([str(run_dir)]) == 0
    out = capsys.readouterr().out
    for text in ("finished: all steps done, step 40", "3 ranks on 2 hosts (n1, n2)", "12 ms median", "25.0% of dense"):
        assert text in out
    assert "test_accuracy" in out
    assert "Restarts" not in out


def test_the_best_score_is_the_one_that_the_run_says_is_better(tmp_path, capsys):
    file = make_run(tmp_path / "said")
    for step, value in ((20, 1.92), (30, 0.82), (40, 2.98)):
        file.append_evaluation(
            step, step / 10, {"test_mae": value, "odd": value}, {"test_mae": "lower", "odd": "higher"}
        )
    assert main([str(tmp_path / "said")]) == 0
    out = capsys.readouterr().out
    best = {
        line.split()[0]: line.split()[-2] for line in out.splitlines() if line.strip().startswith(("test_mae", "odd"))
    }
    assert best == {"test_mae": "0.8200", "odd": "2.9800"}
    assert "guessed" not in out


def test_a_file_that_does_not_say_it_has_it_guessed_and_the_report_tells(tmp_path, capsys):
    file = make_run(tmp_path / "old")
    names = ("bits_per_char", "perplexity", "test_mae", "test_loss", "test_accuracy")
    for step, value in ((20, 1.92), (40, 0.82)):
        file.append_evaluation(step, step / 10, dict.fromkeys(names, value))
    assert main([str(tmp_path / "old")]) == 0
    lines = capsys.readouterr().out.splitlines()
    best = {line.split()[0]: line.split()[-2] for line in lines if line.split()[:1] and line.split()[0] in names}
    assert best == {**dict.fromkeys(names, "0.8200"), "test_accuracy": "1.9200"}
    assert any("guessed from the names" in line and "test_accuracy, the higher the better" in line for line in lines)


def test_restarts_are_told(tmp_path, capsys):
    file = make_run(tmp_path / "r")
    file.restart(30, 2, {}, "requeued")
    append(file, 30, 2, 2)
    main([str(tmp_path / "r")])
    assert "step 30 after 3 s: requeued, 2 ranks" in capsys.readouterr().out


def test_several_runs(tmp_path, capsys):
    make_run(tmp_path / "slow", lr=0.5)
    make_run(tmp_path / "fast", lr=0.25, oversubscribed=True)
    assert main([str(tmp_path / "slow"), str(tmp_path / "fast" / "metrics.h5")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "lr" in lines[0].split()
    assert lines[1].split()[:3] == ["slow", "running", "0.5"]
    assert lines[2].split()[:3] == ["fast", "running*", "0.25"]
    assert "oversubscribed" in lines[3]


def test_a_run_without_steps_or_evaluations(tmp_path, capsys):
    make_run(tmp_path / "r", steps=0)
    assert main([str(tmp_path / "r")]) == 0
    assert "running" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5e-5, "25 us"), (0.0123, "12.3 ms"), (5, "5 s"), (150, "2 min 30 s"), (7260, "2 h 1 min"), (np.nan, "-")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("nbytes", "text"), [(0, "0 B"), (1500, "1.5 kB"), (2e6, "2 MB"), (3e12, "3 TB")])
def test_sizes(nbytes, text):
    assert size(nbytes) == text


def test_sparklines():
    assert sparkline(np.arange(8.0)) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([0, np.nan, 1])) == "▁ █"
    assert len(sparkline(np.arange(1000.0))) == 32
    assert sparkline(np.array([np.nan])) == ""
    assert sparkline(np.array([2.0, 2.0])) == "▄▄"


def unlike(tmp_path, runs: int = 3) -> list[str]:
    """Runs of jobs that have nothing in common."""
    for index in range(runs):
        settings = {f"c{number}_of_a_setting": f"value {index} of {number}, and more of it" for number in range(27)}
        config = {"run": {"name": "known"}, "workload": {"batch": 30}, "solver": {"name": "sgd", **settings}}
        make_run(tmp_path / f"run{index}", config=json.dumps(config), peak_memory_bytes=np.array([2e9, 3e9, 1e9]))
    return [str(tmp_path / f"run{index}") for index in range(runs)]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_runs_of_unlike_jobs_stay_readable_at_any_width(tmp_path, width):
    paths = unlike(tmp_path)
    runs = [(run, summarise(run)) for run in (read_run(Path(path)) for path in paths)]
    console = Console(width=width, file=io.StringIO(), markup=False, highlight=False)
    console.print(several(runs, width))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    for told in (
        "run0",
        "run1",
        "run2",
        "12 ms",
        "3 GB",
        "c5_of_a_setting",
        "21 more settings differ",
        "c26_of_a_setting",
    ):
        assert told in text
    assert sum("c6_of_a_setting" in line for line in lines) == 1  # in the note alone


def test_columns_are_chosen(tmp_path, capsys):
    paths = unlike(tmp_path)
    assert main([*paths, "--columns", "c26_of_a_setting,solver.c1_of_a_setting,step"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "c26_of_a_setting", "c1_of_a_setting", "step"]
    assert lines[3].split()[:4] == ["run2", "value", "2", "of"] and "12 ms" in lines[3]
    assert main([*paths, "--columns", "speed"]) == 2
    assert "'speed' is none of the columns; there are run, state" in capsys.readouterr().err


def test_memory_is_told(tmp_path, capsys):
    (path,) = unlike(tmp_path, 1)
    assert main([path]) == 0
    assert "3 GB at most on a rank" in capsys.readouterr().out
    assert main([path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["peak_memory_bytes"] == 3e9
    assert main([path, "--csv"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert row.split(",")[header.split(",").index("peak_memory_bytes")] == "3000000000.0"


def test_energy_is_told_or_not_known(tmp_path, capsys):
    file = make_run(tmp_path / "run", steps=0, energy_of="packages")
    (path,) = [str(tmp_path / "run")]
    assert main([path]) == 0
    assert "not known" in capsys.readouterr().out
    ranks, phases = np.zeros((2, 3), int), np.zeros((2, 3, 4))
    file.append_steps({"step": np.array([1, 2]), "energy_j": np.array([np.nan, 1500.0])}, phases, ranks, ranks)
    assert main([path]) == 0
    assert "1.5 kJ of all nodes' packages" in capsys.readouterr().out
    assert main([path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["energy_j"] == 1500
    assert main([path, "--columns", "energy"]) == 0
    assert "1.5 kJ" in capsys.readouterr().out
    file.restart(2, 3, {})  # on nodes that do not say
    file.append_steps({"step": np.array([3, 4])}, phases, ranks, ranks)
    assert main([path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["energy_j"] is None
