"""Files that no run wrote, or that are no longer whole: a sentence, what can still be had, and no traceback."""

import json
import resource

import h5py
import numpy as np
import pytest

from hpcopt.errors import EXIT_BAD_INPUT, MetricsError
from hpcopt.report.__main__ import main
from hpcopt.report.attributes import KINDS, printable
from hpcopt.runs import open_run
from hpcopt.store import journal
from tests.report.conftest import make_run

ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202ered\r\nnext [/] [bold]"


def test_texts_of_a_file_reach_the_terminal_without_what_it_would_obey(tmp_path, capsys):
    config = {"run": {"name": ESCAPE}, "workload": {"name": ESCAPE, "batch": 30}, "solver": {"name": "sgd"}}
    plugins = {f"my:{ESCAPE}": {"distribution": ESCAPE, "version": "1", "digest": "0" * 64}}
    told = {"title": ESCAPE, "mpi_library": ESCAPE, "config": json.dumps(config), "plugins": json.dumps(plugins)}
    file = make_run(tmp_path / "r", hostnames=[ESCAPE], **told)
    file.append_evaluation(40, 4.0, {f"score {ESCAPE}".replace("/", ""): 1.0})
    file.restart(40, 3, {}, ESCAPE)
    make_run(tmp_path / "other", lr=0.3)
    for runs in (["r"], ["r", "other"]):
        assert main([str(tmp_path / run) for run in runs]) == 0
        out = capsys.readouterr().out
        assert "red" in out and "[bold]" in out
        assert not set(out) & {"\x1b", "\x07", "\r", "\u202e"}
    assert main([str(tmp_path / "r"), "--csv"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("column", ["loss", "sent_bytes", "phase_s"])
def test_fill_values_that_stand_for_gigabytes_are_not_read(tmp_path, capsys, column):
    """Nor by whoever opens the run for its metrics."""
    file, before = make_run(tmp_path / "r", steps=25), peak_bytes()
    with journal.changing(file.path) as opened:
        old = opened["steps"][column]
        shape = (1 << 28, *old.shape[1:]) if column == "loss" else (old.shape[0], 1 << 24, *old.shape[2:])
        del opened["steps"][column]
        opened["steps"].create_dataset(column, shape, "f4", chunks=True, fillvalue=1)
        if column == "phase_s":
            opened["steps/rank"].resize(1 << 24, axis=0)
    assert main([str(tmp_path / "r")]) == EXIT_BAD_INPUT
    assert "stands for" in capsys.readouterr().err
    (tmp_path / "r" / "job.toml").write_text("[run]\nsteps = 25\n[workload]\ndata = 'x'\n")
    with pytest.raises(MetricsError, match="stands for"):
        open_run(tmp_path / "r").metrics()
    assert peak_bytes() - before < 1 << 28


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_printable():
    assert printable("a\x1b[1m\u2028b\tc\x9b") == "a [1m b c "
    assert printable("größe 数") == "größe 数"


WRONG = {
    "text": "text",
    "number": 3,
    "half": 0.5,
    "list": np.array([b"a", b"b"]),
    "table": np.ones((2, 2)),
    "empty": np.zeros(0),
    "bytes": np.void(b"\xff\x00"),
    "negative": -5,
}


@pytest.mark.parametrize("name", KINDS)
def test_attributes_of_any_kind_are_shown_or_left_out(tmp_path, capsys, name):
    for kind, value in WRONG.items():
        file = make_run(tmp_path / kind, steps=25)
        with journal.changing(file.path) as opened:
            opened.attrs[name] = value
    for kind in WRONG:
        for more in ([], ["--json", "-"], ["--csv", "-"], ["--tables", str(tmp_path / "tables")]):
            code = main([str(tmp_path / kind), *more])
            captured = capsys.readouterr()
            assert code in (0, 2), (kind, more)
            assert captured.err.count("\n") == (code == 2)
            assert captured.out or more[:1] == ["--tables"] or code == 2


@pytest.mark.parametrize(
    "config", ["[]", "3", '{"run": 3}', '{"workload": "x"}', '{"workload": {"batch": "x"}}', "{", '{"exchange": []}']
)
def test_jobs_of_any_kind_are_shown_or_left_out(tmp_path, capsys, config):
    make_run(tmp_path / "a", config=config)
    make_run(tmp_path / "b")
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--tables", str(tmp_path / "tables")]) == 0


@pytest.mark.parametrize("name", ["step", "loss", "samples", "time_s", "step_s"])
@pytest.mark.parametrize("values", [np.arange(3.0), np.ones((40, 2)), np.array([b"x"] * 40)])
def test_columns_of_any_kind_are_shown_or_one_sentence(tmp_path, capsys, name, values):
    file = make_run(tmp_path / "r")
    with h5py.File(file.path, "r+") as opened:
        del opened["steps"][name]
        opened["steps"][name] = values
    assert main([str(tmp_path / "r")]) in (0, 2)
    assert capsys.readouterr().err.count("\n") <= 1


def test_a_damaged_a_missing_and_a_looping_file_are_told_and_the_others_shown(tmp_path, capsys):
    make_run(tmp_path / "whole")
    for name in ("damaged", "missing", "looping"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "metrics.h5").write_bytes((tmp_path / "whole" / "metrics.h5").read_bytes()[:3000])
    (tmp_path / "looping" / "metrics.h5").symlink_to("metrics.h5")
    for name in ("damaged", "missing", "looping"):
        assert main([str(tmp_path / name)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and name in captured.err
        assert captured.out == ""
        assert main([str(tmp_path / name), str(tmp_path / "whole")]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and name in captured.err
        assert "12 ms median" in captured.out


def test_what_was_plugged_in_is_told_and_never_imported(tmp_path, capsys):
    plugins = {"no_such_module:Net": {"distribution": "mine", "version": "1.2", "digest": "abcdef0123456789"}}
    make_run(tmp_path / "r", plugins=json.dumps(plugins))
    assert main([str(tmp_path / "r")]) == 0
    assert "no_such_module:Net (mine 1.2 abcdef01)" in capsys.readouterr().out
    assert main([str(tmp_path / "r"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["plugins"] == {"no_such_module:Net": "mine 1.2 abcdef01"}
