"""The plan that the tutorial shows is what ``--dry-run`` says."""

import textwrap
from pathlib import Path

from hpcopt.job import read_job
from hpcopt.plan import plan
from hpcopt.prepare import prepare

ROOT = Path(__file__).parents[2]


def test_the_job_of_a_project():
    job = (ROOT / "examples/project/job.toml").read_text()
    shown = (ROOT / "docs/tutorial.md").read_text().partition("    [workload]\n")[2].partition("\n\n")[0]
    assert "[workload]\n" + textwrap.dedent(f"{shown}\n") in job


def test_the_plan(tmp_path):
    prepare("digits", tmp_path)
    said = plan(read_job(ROOT / "jobs/quickstart.toml", [f"workload.data={tmp_path}/digits"]), 128)
    shown = (ROOT / "docs/tutorial.md").read_text().partition("    plan\n")[2].partition("\n\n")[0]
    assert len(shown.splitlines()) > 5
    for line in shown.splitlines():
        if "device" not in line:  # this machine may have a GPU
            assert line.removeprefix("    ") in said.splitlines()
