"""A study file says what is asked, and each mistake in it is one message, on every rank, before anything runs."""

from pathlib import Path

import pytest

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import EXIT_BAD_INPUT, HpcoptError, JobError
from hpcopt.study import Study, read_study_file, run_study
from hpcopt.study.__main__ import main
from hpcopt.study.grid import filled

JOBS = Path(__file__).parents[2] / "jobs"
FUNCTION = '[study]\nfunction = "points:plain"\n'
JOB = f'[study]\njob = "{JOBS}/quickstart.toml"\n'
AXIS = "[[axes]]\nc = [1, 2]\n"


def written(text: str) -> Path:
    path = Path("grid.toml")
    path.write_text(text, encoding="utf-8")
    return path


def test_points_are_the_product_of_axes_and_seeds_and_keys_of_an_axis_go_together(here):
    text = (
        f"{FUNCTION}seeds = 2\n[base]\na.b = 7\n[[axes]]\nx = [1, 2]\ny = ['p', 'q']\n[[axes]]\na.c = [0.5, [1, 2]]\n"
    )
    study = read_study_file(written(text))
    assert study.name == "grid"
    assert study.points == [
        {"x": x, "y": y, "a.c": c, "seed": seed}
        for x, y in ((1, "p"), (2, "q"))
        for c in (0.5, [1, 2])
        for seed in (0, 1)
    ]
    whole = filled(study.base, study.points[3])
    assert whole == {"a": {"b": 7, "c": [1, 2]}, "x": 1, "y": "p", "seed": 1}
    whole["a"]["c"].append(3)  # a function may change what it is given
    assert study.points[3]["a.c"] == [1, 2]


def test_a_point_changes_a_job_as_set_does(here):
    text = (
        f"{JOB}seeds = [5]\n[base.run]\nepochs = 2\n"
        "[[axes]]\nsolver.optimizer = [{ name = 'adamw', lr = 0.5 }, { name = 'sgd', lr = 1.0 }]\n"
        "[[axes]]\nworkload.batch = [32]\n"
    )
    study, left_out = read_study_file(written(text)), []
    jobs = [study.job(point, left_out) for point in study.points]
    assert [(job.solver.optimizer.name, job.solver.optimizer.lr) for job in jobs] == [("adamw", 0.5), ("sgd", 1.0)]
    assert [(job.run.seed, job.run.epochs, job.workload.batch) for job in jobs] == [(5, 2, 32)] * 2
    named = read_study_file(written(f"{JOB}[[axes]]\nsolver.optimizer.name = ['sgd', 'adamw']\n"))
    assert [named.job(point, left_out).solver.optimizer.lr for point in named.points] == [0.1, 0.1]
    assert left_out == [
        "hpcopt: axis solver.optimizer.name=adamw leaves out momentum of grid.toml, which it does not know"
    ]


WRONG = [
    ("", '"study" is missing'),
    (f"{FUNCTION}axis = 3\n{AXIS}", 'unknown key "study.axis"'),
    (f"{FUNCTION}keeps = ['a']\n{AXIS}", 'did you mean "keep"'),
    (f"{FUNCTION}seeds = 0\n{AXIS}", "study.seeds: give a number of seeds"),
    (f"{FUNCTION}seeds = [1, 1]\n{AXIS}", "a seed is there twice"),
    (f"{FUNCTION}seeds = [-1]\n{AXIS}", "study.seeds.0"),
    (f"{FUNCTION}job = 'a.toml'\n{AXIS}", "a function and a job"),
    (FUNCTION, "the study has no point"),
    (f"{FUNCTION}[[axes]]\n", "axis 1 has no key"),
    (f"{FUNCTION}[[axes]]\nc = []\n", "the axis c has no value"),
    (f"{FUNCTION}[[axes]]\nc = 3\n", "the axis c = 3 is no list of values"),
    (f"{FUNCTION}[[axes]]\nc = [1, 2, 1]\n", "the axis c has 1 twice"),
    (f"{FUNCTION}[[axes]]\nc = [1, nan]\n", "values are finite numbers"),
    (f"{FUNCTION}[[axes]]\nc = [{2**63}]\n", "whole ones of 64 bits"),
    (f"{FUNCTION}[[axes]]\nc = ['a\\u0000']\n".replace("'", '"'), "texts without NUL"),
    (f"{FUNCTION}seeds = [{2**63}]\n{AXIS}", "study.seeds.0"),
    (f"{FUNCTION}[base]\na = 3\n[[axes]]\na.b = [1]\n", "the axis a.b lies in a of [base], which is 3 and no table"),
    (f"{FUNCTION}[[axes]]\nc = [2026-01-01]\n", "values are finite numbers"),
    (f"{FUNCTION}[[axes]]\nc = [1, 2]\nd = [1]\n", "c has 2, d has 1"),
    (f"{FUNCTION}{AXIS}{AXIS}", "the key c is on two axes"),
    (f"{FUNCTION}{AXIS}[[axes]]\nc.d = [1]\n", "one is a part of the other"),
    (f"{FUNCTION}[[axes]]\nseed = [1]\n", "write [study] seeds instead"),
    (f"{FUNCTION}[[axes]]\nstatus = [1]\n", "the table has the name for something else"),
    (f"{FUNCTION}[[axes]]\na = {list(range(2000))}\n[[axes]]\nb = {list(range(2000))}\n", "4,000,000 points"),
    (f"{FUNCTION}keep = ['seconds']\n{AXIS}", 'keep has "seconds", which is a column of every table'),
    (f"{FUNCTION}keep = ['c']\n{AXIS}", 'keep has "c"'),
    (f"[study]\nfunction = 'points'\n{AXIS}", 'write "package.module:function"'),
    (f"[study]\nfunction = 'pionts:plain'\n{AXIS}", "there is no module pionts"),
    (f"[study]\nfunction = 'points:plane'\n{AXIS}", "points has no plane; it has"),
    (f"[study]\nfunction = 'points:__name__'\n{AXIS}", "cannot be called"),
    (f"[study]\njob = 'none.toml'\n{AXIS}", "cannot read the job file none.toml"),
    (f"{JOB}[[axes]]\nsolver.optimiser.lr = [1]\n", 'axis: unknown key "solver.optimiser"; did you mean "optimizer"?'),
    (f"{JOB}[[axes]]\nsolver.optimizer.lr = [0.1, -1.0]\n", "at solver.optimizer.lr=-1.0:"),
    (f"{JOB}[[axes]]\nrun.epochs = ['many']\n", "axis: run.epochs: Input should be a valid number"),
    (f"{JOB}[base]\nrun.epoch = 3\n{AXIS}", 'did you mean "epochs"'),
    (f"[study]\nseeds = 2\n{AXIS}", '"workload" is missing'),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_mistake_is_one_message_and_nothing_runs(here, capsys, text, says):
    assert main([str(written(text)), "--dry-run"]) == EXIT_BAD_INPUT
    told = capsys.readouterr()
    assert says in told.err
    assert "Traceback" not in told.err and told.out == ""
    assert not Path("studies").exists()


@pytest.mark.parametrize(
    ("study", "says"),
    [
        (Study("s", [{"c": [1]}], (), {}, "points:none"), "points has no none"),
        (Study("s", [{"c": [1]}], (), {"run": {"epochs": 1}}), '"workload" is missing'),
    ],
)
def test_every_rank_hears_of_it(here, study, says):
    def refused(transport):
        with pytest.raises(HpcoptError) as caught:
            run_study(study, "out", World(transport))
        return str(caught.value)

    assert all(says in text for text in run_ranks(3, refused))
    assert not Path("out").exists()


def test_a_dry_run_counts(here, capsys):
    path = written(f"{FUNCTION}seeds = 3\n{AXIS}")
    assert main([str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out == "grid: 6 points into studies/grid; c, seed\n"


def test_keys_may_be_set(here, capsys):
    path = written(f"{FUNCTION}[base]\nd = 3\n{AXIS}")
    study = read_study_file(path, ["study.seeds=[4]", "base.d=5", "base.e=x", "axes=[{c=[7]}]"])
    assert study.points == [{"c": 7, "seed": 4}] and study.base == {"d": 5, "e": "x"}
    assert main([str(path), "--set", "study.seed=3"]) == EXIT_BAD_INPUT
    assert 'unknown key "study.seed"' in capsys.readouterr().err


def test_an_array_cannot_begin_anew(here, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert main([str(written(f"{FUNCTION}{AXIS}")), "--fresh"]) == EXIT_BAD_INPUT
    assert "--fresh in a job array" in capsys.readouterr().err


def test_a_study_without_points_cannot_be_made():
    with pytest.raises(JobError, match="has no point"):
        Study("s", [])
