"""Each point is done exactly once: over ranks, over commands side by side, after a stop, after kills at any moment."""

import random
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import HpcoptError
from hpcopt.store.range_lock import lock, unlock
from hpcopt.study import Study, read_study, run_study
from hpcopt.study import folder as folder_room
from hpcopt.study.claims import FREE, ROW, TAKEN, Claims
from hpcopt.study.folder import Folder
from hpcopt.trainer.signals import StopSignals

PATIENCE_S = 300


def whole(table, n: int, seeds: int = 1) -> bool:
    """Whether a table of points.noted has every point, in the grid's order, with its own results."""
    numbers = np.repeat(np.arange(n), seeds)
    return (
        table.axes["n"].tolist() == numbers.tolist()
        and set(table.status) == {"done"}
        and np.array_equal(table.results["square"], numbers**2.0)
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_deal_the_points_among_each_other(study_of, calls, ranks):
    study = study_of("noted", 23, seeds=3)
    tables = run_ranks(ranks, lambda transport: run_study(study, Path("out"), World(transport)))
    assert all(whole(table, 23, 3) for table in tables)
    assert sorted(calls()) == sorted(f"{n} {seed}" for n in range(23) for seed in range(3))
    assert np.array_equal(tables[0].results["sum"], [n + seed for n in range(23) for seed in range(3)])
    assert not list(Path("out/parts").iterdir())


def test_the_table_does_not_depend_on_the_ranks(study_of):
    one = run_study(study_of("noted", 11, 2), Path("one"))
    three = run_ranks(3, lambda transport: run_study(study_of("noted", 11, 2), Path("three"), World(transport)))[0]
    assert one.points == three.points
    assert {k: v.tolist() for k, v in one.results.items()} == {k: v.tolist() for k, v in three.results.items()}


def test_processes_side_by_side_do_each_point_once(study_of, calls):
    """Three that know nothing of each other, as tasks of a job array."""
    started = [begun(study_of("slow", 40, sleep_s=0.01)) for _ in range(3)]
    try:
        for process in started:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in started] == [0, 0, 0]
    finally:
        end(started)
    assert whole(read_study("out"), 40)
    assert sorted(calls()) == sorted(f"{n} 0" for n in range(40))


def test_a_study_killed_at_any_moment_goes_on(study_of, calls):
    """A kill costs the points that were at work, no more: only those are begun a second time."""
    study, draw, kills = study_of("slow", 40, sleep_s=0.01), random.Random(5), 0
    while len(calls()) < 32:
        seen, more = len(calls()), draw.randint(1, 6)
        started = [begun(study) for _ in range(2)]
        try:
            wait_for(lambda seen=seen, more=more: len(calls()) >= seen + more, started)
            time.sleep(draw.uniform(0, 0.02))  # anywhere in a point, or between two
        finally:
            end(started)
        kills += len(started)
    assert whole(run_study(study, Path("out")), 40)
    assert {line.split()[0] for line in calls()} == set(map(str, range(40)))
    assert 40 < len(calls()) <= 40 + kills


@pytest.mark.parallel([2])
def test_ranks_under_mpi(shared_tmp_path):
    from hpcopt.comm.mpi import MpiTransport

    study = Study("numbers", [{"n": list(range(30))}], (), {}, lambda point: {"square": point["n"] ** 2})
    assert whole(run_study(study, shared_tmp_path / "out", World(MpiTransport())), 30)


def test_what_is_done_is_not_done_again(study_of, calls):
    run_study(study_of("noted"), Path("out"))
    assert whole(run_study(study_of("noted"), Path("out")), 7)
    assert len(calls()) == 7


def test_a_signal_ends_it_after_the_point_and_the_same_command_goes_on(study_of, calls):
    with StopSignals() as signals:
        table = run_study(study_of("stops"), Path("out"), signals=signals)
    assert signals.received == "SIGUSR1"
    assert table.status.tolist() == ["done"] * 4 + ["left"] * 3
    with StopSignals() as signals:
        assert whole(run_study(study_of("stops"), Path("out"), signals=signals), 7)
    assert len(calls()) == 7


def test_a_point_that_fails_is_done_once_more(study_of, calls):
    table = run_study(study_of("fails_once", 3), Path("out"))
    assert table.results["n2"].tolist() == [0, 1, 2]
    assert calls() == ["0 0", "0 0", "1 0", "1 0", "2 0", "2 0"]


def test_a_point_that_fails_twice_is_recorded_and_left_alone_until_asked_for(study_of, calls):
    table = run_study(study_of("odd_fails", 4), Path("out"))
    assert table.status.tolist() == ["done", "failed", "done", "failed"]
    assert table.message.tolist() == ["", "ValueError: 1 is odd", "", "ValueError: 3 is odd"]
    assert np.array_equal(table.results["half"], [0, np.nan, 1, np.nan], equal_nan=True)
    before = len(calls())
    assert before == 6
    run_study(study_of("odd_fails", 4), Path("out"))
    assert len(calls()) == before
    run_study(study_of("odd_fails", 4), Path("out"), again=True)
    assert calls()[before:] == ["1 0", "1 0", "3 0", "3 0"]


def test_more_values_are_more_points_and_what_is_done_stays(study_of, calls):
    run_study(study_of("noted", 3, seeds=2), Path("out"))
    table = run_study(study_of("noted", 4, seeds=3), Path("out"))
    assert len(calls()) == len(set(calls())) == 12
    assert sorted(map(tuple, (p.values() for p in table.points))) == [(n, s) for n in range(4) for s in range(3)]
    assert np.array_equal(table.results["square"], table.axes["n"] ** 2.0)
    assert table.points[:6] == study_of("noted", 3, seeds=2).points


def test_a_study_that_is_extended_while_it_goes_on_is_done_to_its_new_end(here):
    def study(n: int) -> Study:
        return Study("numbers", [{"n": list(range(n))}], (), {}, trial)

    def trial(point):
        if point["n"] == 1 and len(read_study("out")) == 3:
            Folder(Path("out")).begin(study(6))
        return {"square": point["n"] ** 2}

    assert whole(run_study(study(3), "out"), 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: Study(s.name, [{"n": [0, 1]}], (), s.base, s.function), "has not any more: n=2"),
        (lambda s: Study(s.name, s.axes, (), {**s.base, "log": "other"}, s.function), "base.log"),
        (lambda s: Study(s.name, s.axes, (), s.base, "points:slow"), 'function = "points:noted" there'),
        (lambda s: Study(s.name, s.axes, (0, 1), s.base, s.function), "axes: n there"),
        (lambda s: Study(s.name, s.axes, (), s.base, s.function, keep=("sum",)), "keep = [] there"),
    ],
)
def test_another_study_is_refused_on_every_rank_and_changes_nothing(study_of, change, says):
    study = study_of("noted", 3)
    run_study(study, Path("out"))
    before = Path("out/table.h5").read_bytes()

    def refused(transport):
        with pytest.raises(HpcoptError, match="begin anew by --fresh") as caught:
            run_study(change(study), Path("out"), World(transport))
        return str(caught.value)

    assert says in run_ranks(2, refused)[0]
    assert Path("out/table.h5").read_bytes() == before
    assert whole(run_study(study_of("noted", 4), Path("out"), fresh=True), 4)
    assert len(list(Path().glob("out.before-*"))) == 1


def test_a_point_that_somebody_is_about_to_note_as_taken_is_left_to_them(tmp_path):
    with Claims(tmp_path / "claims") as claims, (tmp_path / "claims").open("r+b") as other:
        claims.settle(6, lambda: np.zeros(6, bool))
        assert lock(other.fileno(), 1)
        assert claims.take(1, 6) == [0]
        assert claims.take(2, 6) == [3, 4]  # 1 and 2 in one piece cannot be had
        unlock(other.fileno(), 1)
        assert claims.take(9, 6) == [1, 2]
        assert not lock(other.fileno(), 1)


def test_a_row_that_a_kill_has_cut_short_is_none(study_of, calls):
    run_study(study_of("noted", 2), Path("out"))
    folder, more = Folder(Path("out")), study_of("noted", 4)
    folder.begin(more)
    with folder.join() as hands:
        assert hands.claims.take(5, 4) == [2, 3]
        part = next(Path("out/parts").iterdir())
    part.write_bytes(b'[2, "done", 0.1, {"square": 4.0, "sum": 2.0}, ""]\n[3, "done", 0.1, {"squ')
    assert whole(run_study(more, Path("out")), 4)
    assert calls() == ["0 0", "1 0", "3 0"]


def test_a_row_that_is_in_the_table_and_still_in_a_part_counts_once(study_of):
    """Killed after the table was written, before the part was removed."""
    run_study(study_of("noted", 2), Path("out"))
    Path("out/parts/gone.jsonl").write_text('[1, "done", 9.0, {"square": 5.0}, ""]\n', encoding="utf-8")
    assert whole(run_study(study_of("noted", 2), Path("out")), 2)
    assert not list(Path("out/parts").iterdir())


def test_claims_of_a_longer_table_that_is_gone_are_no_points(study_of, calls):
    Folder(Path("out")).begin(study_of("noted", 9))
    Path("out/table.h5").unlink()
    assert whole(run_study(study_of("noted", 3), Path("out")), 3)
    assert calls() == ["0 0", "1 0", "2 0"]


def test_a_message_of_any_bytes_is_kept(here):
    def trial(point):
        raise OSError("no file b\udcff\0")

    table = run_study(Study("s", [{"n": [0]}], (), {}, trial), "out")
    assert table.message[0].startswith("OSError: no file b\\udcff")
    assert read_study("out").status.tolist() == ["failed"]


def test_a_table_that_is_written_anew_while_it_is_read_loses_no_row(study_of, monkeypatch):
    """Between reading the table and reading the parts, a part has been put into it."""
    study = study_of("noted", 2)
    folder = Folder(Path("out"))
    folder.begin(study)
    Path("out/parts/gone.jsonl").write_text('[1, "done", 9.0, {"square": 1.0}, ""]\n', encoding="utf-8")
    read, settled = folder_room.read_table, []

    def read_slowly(path):
        table = read(path)
        if not settled:
            settled.append(True)
            Folder(Path("out")).settle()
        return table

    monkeypatch.setattr(folder_room, "read_table", read_slowly)
    assert folder.read().status.tolist() == ["left", "done"]


@pytest.mark.parametrize("spoil", ["damage", "file"])
def test_a_folder_that_cannot_serve_is_one_message_on_every_rank(study_of, calls, spoil):
    if spoil == "file":
        Path("out").touch()
    else:
        Path("out").mkdir()
        Path("out/table.h5").write_bytes(b"something")

    def refused(transport):
        with pytest.raises(HpcoptError, match=r"--fresh where a damaged|cannot write the folder .*out") as caught:
            run_study(study_of("noted", 3), Path("out"), World(transport))
        return caught.value.on_every_rank

    assert run_ranks(2, refused) == [True, True]
    assert calls() == []


def test_a_folder_that_is_taken_away_is_one_message(study_of):
    folder = Folder(Path("out"))
    folder.begin(study_of("noted", 2))
    Path("out").rename("elsewhere")
    for use in (folder.join, folder.settle):
        with pytest.raises(HpcoptError, match=r"cannot write the folder .*out of the study: No such file"):
            use()


def test_claims_of_the_living_are_kept_and_those_of_the_dead_are_free(tmp_path):
    def known(*rows: int):
        return lambda: np.isin(np.arange(6), rows)

    path = tmp_path / "claims"
    with Claims(path) as one, Claims(path) as other:
        one.settle(6, known())
        assert one.take(2, 6) == [0, 1]
        assert other.take(3, 6) == [2, 3, 4]
        assert one.take(9, 5) == []
        assert one.take(9, 6) == [5]
        one.done(5)
        with Claims(path) as third:
            assert third.take(9, 6) == []
            third.settle(6, known(5))
            assert third.states().tolist() == [TAKEN] * 5 + [ROW]
    with Claims(path) as third:  # their processes are gone, one of them had written a row
        third.settle(6, known(3, 5))
        assert third.states().tolist() == [FREE] * 3 + [ROW, FREE, ROW]
        third.settle(6, known(3))  # somebody has removed a row
        assert third.states().tolist() == [FREE] * 3 + [ROW, FREE, FREE]
        assert third.take(9, 6) == [0, 1, 2]


def begun(study):
    """A process that does a study into out/, killed by SIGKILL if need be."""
    process = get_context("fork").Process(target=run_study, args=(study, Path("out")))  # without importing torch anew
    process.start()
    return process


def wait_for(event, processes) -> None:
    """Until something has come about, or the processes have ended by themselves."""
    patience_s = time.monotonic() + PATIENCE_S
    while not event() and any(process.is_alive() for process in processes):
        assert time.monotonic() < patience_s
        time.sleep(0.002)


def end(processes) -> None:
    for process in processes:
        process.kill()
        process.join()
