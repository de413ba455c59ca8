"""Sixty jobs are interrupted at random microseconds and brought back; each ends as if nothing had been.

`python -m benchmarks.interruptions` is the same with more kinds of jobs, for hundreds of cases.
"""

from benchmarks.interruptions.__main__ import Cases
from benchmarks.interruptions.cases import Setting

CASES = 60
SETTINGS = [Setting("momentum", background=True, ranks=2), Setting("residuals", background=False, ranks=2)]


def test_interrupted_jobs_end_as_undisturbed_ones(tmp_path, digits):
    with Cases(tmp_path, digits / "digits", 5, SETTINGS) as cases:
        cases.prepare()
        rows = [cases.play(number) for number in range(CASES)]
    assert [row for row in rows if row["complaints"]] == []
    met = [interruption for row in rows for interruption in row["interruptions"] if interruption["met"]]
    assert len(met) > CASES / 2
    assert any(row["cold"] for row in rows)


def test_a_run_that_lost_a_row_or_a_bit_is_found(tmp_path, digits):
    """The demands can fail."""
