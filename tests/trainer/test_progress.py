"""A log has plain dated lines, few of them, and never a carriage return; other ranks than 0 are silent."""

import re

from hpcopt.trainer.progress import Progress


def test_a_batch_log(tmp_path, capsys):
    progress = Progress(tmp_path / "log.txt", speaks=True, every_s=1000)
    progress.say("hello\nthere")
    progress.begin(100)
    for done in range(1, 101):
        progress.step(done, 0.5, 1.0, 1234, 0.25)
    progress.close()
    out = capsys.readouterr().out
    assert out == (tmp_path / "log.txt").read_text()
    assert "\r" not in out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)
    assert [line[21:] for line in lines] == [
        "hello",
        "there",
        "100 steps",
        "step=100/100 loss=0.5 samples/s=1,234 exchange=25% eta=0m00s",
    ]


def test_the_first_step_is_no_measure_of_the_others(tmp_path, capsys, monkeypatch):
    """It compiles loops, or opens files."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(tmp_path / "log.txt", speaks=True, every_s=0.5)
    progress.begin(11)
    for done in range(1, 4):
        now[0] += 600.0 if done == 1 else 1.0
        progress.step(done, 0.5, 1.0, 1, 0.0)
    progress.close()
    etas = [line.rpartition("=")[2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert etas == ["?", "0m09s", "0m08s"]


def test_other_ranks_are_silent(tmp_path, capsys):
    progress = Progress(tmp_path / "log.txt", speaks=False, every_s=0)
    progress.say("hello")
    progress.begin(1)
    progress.step(1, 0.5, 1.0, 1, 0.0)
    progress.close()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "log.txt").exists()
