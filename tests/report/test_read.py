"""A run in memory says what the file says."""

import numpy as np
import pytest

from hpcopt.errors import MetricsError
from hpcopt.report import read
from hpcopt.report.read import read_run
from tests.report.conftest import append, make_run


def test_tables_are_reduced_over_ranks(run_dir):
    run = read_run(run_dir)
    assert run.steps == 40
    assert run.ranks == 3
    np.testing.assert_allclose(run.phase_s[20], [0.001, (0.004 * 2 + 0.006) / 3, 0.005, 0], rtol=1e-6)
    np.testing.assert_allclose(run.rank_s[20], 0.012, rtol=1e-6)
    np.testing.assert_allclose(run.rank_phase_s[:, 1], [0.004, 0.004, 0.006], rtol=1e-6)
    assert run.wait_s.shape == (40, 3)
    np.testing.assert_array_equal(run.sent_bytes, np.full(40, 300))
    np.testing.assert_array_equal(run.dense_bytes, np.full(40, 1200))
    assert run.config["solver"]["lr"] == 0.1


def test_a_step_is_its_slowest_rank_without_what_is_beside_it(run_dir):
    np.testing.assert_allclose(read_run(run_dir).step_s[10:], np.full(30, 0.012), rtol=1e-6)


def test_reading_in_blocks_is_reading_at_once(run_dir, monkeypatch):
    whole = read_run(run_dir)
    monkeypatch.setattr(read, "BLOCK_VALUES", 7 * 3 * 4)
    for name in ("phase_s", "rank_s", "rank_phase_s", "wait_s", "sent_bytes"):
        np.testing.assert_allclose(getattr(read_run(run_dir), name), getattr(whole, name))


def test_ranks_that_were_not_there_do_not_count(tmp_path):
    file = make_run(tmp_path / "r", ranks=2)
    file.restart(30, 4, {})
    append(file, 30, 5, 4)
    run = read_run(tmp_path / "r")
    np.testing.assert_allclose(run.phase_s[15, 2], 0.005, rtol=1e-6)
    np.testing.assert_array_equal(run.sent_bytes, [200] * 30 + [400] * 5)
    assert np.isnan(run.wait_s[:30, 2:]).all()
    assert not np.isnan(run.wait_s[30:]).any()
    np.testing.assert_allclose(run.rank_phase_s[3, 2], 0.005, rtol=1e-6)


@pytest.mark.parametrize(("steps", "cold"), [(5, 0), (20, 0), (21, 10), (40, 10)])
def test_the_first_ten_of_more_than_twenty_are_warm_up(tmp_path, steps, cold):
    make_run(tmp_path / "r", steps=steps)
    np.testing.assert_array_equal(read_run(tmp_path / "r").warm, np.arange(steps) >= cold)


def test_a_restart_warms_up_again(tmp_path):
    file = make_run(tmp_path / "r")
    file.restart(30, 3, {})
    append(file, 30, 25, 3)
    rows = np.arange(55)
    np.testing.assert_array_equal(read_run(tmp_path / "r").warm, (rows >= 10) & ~((rows >= 30) & (rows < 40)))


def test_a_run_without_steps(tmp_path):
    make_run(tmp_path / "r", steps=0)
    run = read_run(tmp_path / "r")
    assert run.steps == 0
    assert run.step_s.shape == (0,)


def test_no_run(tmp_path):
    with pytest.raises(MetricsError, match="missing"):
        read_run(tmp_path)
