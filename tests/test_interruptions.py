"""Sixty jobs are interrupted at random microseconds and brought back; each ends as if nothing had been.

`python -m benchmarks.interruptions` is the same with more kinds of jobs, for hundreds of cases.
"""

import shutil

import h5py
import pytest

from benchmarks.interruptions.__main__ import Cases
from benchmarks.interruptions.cases import Setting
from benchmarks.interruptions.demands import complaints, end_of

CASES, PIECES = 60, 10
COLD = 20  # the one whose ranks import for themselves
SETTINGS = [Setting("momentum", background=True, ranks=2), Setting("local steps", background=False, ranks=2)]


@pytest.fixture(scope="module")
def cases(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("interruptions")
    with Cases(folder, digits / "digits", 5, SETTINGS, cold_share=0.03) as cases:
        cases.prepare()
        cases.met = []
        yield cases


@pytest.mark.parametrize("piece", range(PIECES))
def test_interrupted_jobs_end_as_undisturbed_ones(cases, piece):
    rows = [cases.play(number) for number in range(CASES)[piece::PIECES]]
    assert [row for row in rows if row["complaints"]] == []
    assert [row["case"] for row in rows if row["cold"]] == [COLD] * (piece == COLD % PIECES)
    cases.met += [interruption for row in rows for interruption in row["interruptions"] if interruption["met"]]


def test_interruptions_have_met_running_jobs(cases):
    """All of them together: what a piece's few do is up to the machine."""
    if not {*range(CASES)} <= {int(folder.name[4:]) for folder in cases.folder.glob("case*")}:
        pytest.skip("only some of the cases were played")
    assert len(cases.met) > CASES / 3


def doubled(run):
    with h5py.File(run / "metrics.h5", "r+") as file:
        file["steps/step"][3] = file["steps/step"][2]


def another_loss(run):
    with h5py.File(run / "metrics.h5", "r+") as file:
        file["steps/loss"][5] *= 1 + 1e-15


def torn(run):
    (run / "log.txt").write_text((run / "log.txt").read_text() + "2026-11-29T21")


def unfinished(run):
    (run / "checkpoints/step_00000099.tmp").mkdir()


def aside(run):
    run.with_name(f"{run.name}.before-1").mkdir()


def another_seed(run):
    shutil.rmtree(run)
    shutil.copytree(run.parent / "another", run)


@pytest.mark.parametrize("damage", [doubled, another_loss, torn, unfinished, aside, another_seed])
def test_what_is_not_as_undisturbed_is_found(cases, tmp_path, damage):
    for name, source in (("run", "undisturbed0"), ("another", "undisturbed1")):
        shutil.copytree(cases.folder / source / "run", tmp_path / name)
    undisturbed = end_of(tmp_path / "run")
    assert complaints(tmp_path / "run", undisturbed) == []
    damage(tmp_path / "run")
    assert complaints(tmp_path / "run", undisturbed)
