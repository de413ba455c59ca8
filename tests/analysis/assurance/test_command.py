"""hpcopt assure, from runs and streams to a claim, and one message for what is wrong."""

import json
import re
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpcopt import assure, open_run
from hpcopt.analysis.assurance.held_out import count_failures
from hpcopt.analysis.assurance.plan import make_plan
from hpcopt.analysis.assurance.prior import PartialPrior
from hpcopt.analysis.assurance.sample_bounds import weigh
from hpcopt.analysis.assurance.worst_case import confidence
from hpcopt.assure import main
from hpcopt.comm.world import alone
from hpcopt.store.metrics import MetricsFile
from hpcopt.trainer.loop import evaluate
from tests.analysis.assurance.conftest import write_demands
from tests.launching import ROOT

INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
from hpcopt.assure import main
sys.exit(main())
"""
GIVEN = ["--theta", "0.9", "--eps", "0.001", "--bound", "0.01"]


def told(capsys, *arguments) -> dict:
    """The case as JSON, and its exit code."""
    code = main([*map(str, arguments), "--json"])
    said = json.loads(capsys.readouterr().out)
    return {**said, "code": code}


def test_a_partial_prior_that_is_given(capsys):
    said = told(capsys, *GIVEN, "--seen", "0/500", "--ahead", "100,1000")
    assert (said["code"], said["holds"]) == (0, True)
    assert said["confidence"] == pytest.approx(0.998797, abs=5e-7)
    assert [each["demands"] for each in said["survival"]] == [100, 1000]
    assert said["survival"][0]["value"] == pytest.approx(0.898341, abs=5e-7)
    said = told(capsys, *GIVEN, "--seen", "0/50")
    assert (said["code"], said["holds"], said["needed"]["0"]) == (1, False, 83 - 50)
    assert said["needed"]["1"] is None  # p_l = 0
    assert main([*GIVEN, "--seen", "1/50"]) == 1
    assert "With p_l = 0 a failure takes all confidence away" in capsys.readouterr().out


def test_the_failures_of_the_test_split_are_those_of_its_accuracy(run):
    opened = open_run(run)
    samples = count_failures(opened)
    accuracy = evaluate(alone(), opened.workload, opened.model)["test_accuracy"]
    assert samples.total == opened.workload.test_samples
    assert samples.failed == round((1 - accuracy) * samples.total) > 0
    batches = list(opened.workload.test_batches(0, 1))
    labels = torch.cat([batch.tensors["labels"] for batch in batches])
    guesses = torch.cat([opened.model(opened.workload.pictures(batch)).argmax(1) for batch in batches])
    for kind in range(10):
        assert samples.counts[str(kind)] == int((labels == kind).sum())
        assert samples.failures[str(kind)] == int(((labels == kind) & (guesses != kind)).sum())


def test_a_run_and_its_demands(run, tmp_path, capsys):
    demands = write_demands(tmp_path / "demands.csv", 400, 3)
    samples = count_failures(open_run(run))
    eps = weigh(samples).bound(0.9)
    said = told(capsys, run, "--bound", eps * 2, "--lowest", eps / 2, "--demands", demands)
    assert said["ground"]["prior"] == {"theta": 0.9, "eps": pytest.approx(eps), "p_l": eps / 2}
    assert said["ground"]["weighing"]["samples"]["failures"] == samples.failures
    assert said["confidence"] == pytest.approx(float(confidence(PartialPrior(0.9, eps, eps / 2), eps * 2, 3, 400)))
    assert said["drift"]["method"] == "chi-square" and not said["drift"]["p_value"] < 0.01
    theta = weigh(samples, method="hoeffding").confidence(0.3)
    said = told(capsys, run, "--bound", "0.4", "--eps", "0.3", "--method", "hoeffding")
    assert said["ground"]["prior"]["theta"] == pytest.approx(theta)
    assert said["observed"]["demands"] == 0
    assert told(capsys, run, "--bound", "0.4", "--theta", "0")["confidence"] == 0
    both = told(capsys, run, "--bound", "0.4", "--theta", "0.8", "--eps", "0.1")
    assert (both["ground"]["prior"]["theta"], both["ground"]["weighing"]) == (0.8, None)


def test_the_demands_in_the_runs_own_metrics(run, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    MetricsFile(own / "metrics.h5").put_table("demands", [1] * 50, {"failure": np.zeros(50, int)})
    said = told(capsys, own, "--bound", "0.4")
    assert (said["observed"]["demands"], said["observed"]["failures"]) == (50, 0)


def test_a_profile_weighs_the_test_samples_and_finds_drift(run, tmp_path, capsys):
    demands = write_demands(tmp_path / "demands.csv", 400, 0)
    profile = tmp_path / "profile.toml"
    profile.write_text("[profile]\n" + "".join(f"{kind} = {5 if kind == 1 else 1}\n" for kind in range(10)))
    said = told(capsys, run, "--bound", "0.9", "--profile", profile, "--demands", demands)
    weighing = said["ground"]["weighing"]
    assert weighing["effective"] == pytest.approx(360 / weighing["worst_ratio"]) and weighing["worst_ratio"] > 3
    assert (said["code"], said["confidence"] > 0.95) == (1, True)  # it drifts, so the claim does not hold
    assert any(a["state"] == "violated" and "profile" in a["text"] for a in said["assumptions"])


def test_a_run_that_was_stopped_by_its_test_score(run, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    text = (own / "job.toml").read_text()
    (own / "job.toml").write_text(
        text.replace("[run]\n", '[run]\nstop_at = { metric = "test_accuracy", value = 0.5 }\n', 1)
    )
    said = told(capsys, own, "--bound", "0.9", "--seen", "0/500")
    assert said["code"] == 1
    assert any(a["state"] == "violated" and "stop_at" in a["text"] for a in said["assumptions"])


def test_a_plan_from_its_writing_to_its_end(run, tmp_path, capsys):
    demands, plan = write_demands(tmp_path / "demands.csv", 5, 2), tmp_path / "plan.json"
    asked = [run, "--bound", "0.4", "--lowest", "0.05", "--demands", demands]
    assert main([*map(str, asked), "--allow", "1", "--write-plan", str(plan)]) == 0
    said = capsys.readouterr().out
    assert "The 5 demands that are there already do not count." in said
    assert "at failure 2: the network is rejected" in said
    n0, n1 = json.loads(plan.read_text())["needed"]
    assert f"after {n1:,} demands with 1 failed" in said
    said = told(capsys, *asked, "--plan", plan)
    assert (said["code"], said["outcome"]["state"], said["outcome"]["left"]) == (1, "goes on", n0)
    write_demands(demands, n0 + 3, 0, seed=1, mode="a")
    said = told(capsys, *asked, "--plan", plan)
    assert (said["code"], said["outcome"]["state"], said["observed"]["demands"]) == (0, "holds", n0)
    assert said["outcome"]["after"] == [3, 0]
    said = told(capsys, *asked, "--plan", plan, "--theta", "0.5")
    assert (said["code"], said["holds"]) == (1, False)
    assert any("theta is 0.5, and was 0.9 in the plan" in a["text"] for a in said["assumptions"])


def test_a_watch_goes_on_with_the_file_and_ends_with_the_plan(run, tmp_path, monkeypatch, capsys):
    """What happens between two looks happens while the command sleeps."""
    demands, plan, page = write_demands(tmp_path / "demands.csv", 1, 0), tmp_path / "plan.json", tmp_path / "page.html"
    asked = [*map(str, [run, "--bound", "0.4", "--demands", demands])]
    assert main([*asked, "--write-plan", str(plan)]) == 0
    (needed,) = json.loads(plan.read_text())["needed"]
    pages = []

    def between(seconds: float) -> None:
        pages.append("http-equiv" in page.read_text().split("<style>")[0])
        write_demands(demands, 2, 0, seed=len(pages), mode="a")

    monkeypatch.setattr(assure.time, "sleep", between)
    capsys.readouterr()
    assert main([*asked, "--plan", str(plan), "--watch", "--html", str(page)]) == 0
    looks = re.findall(r"^(\d+) demands, 0 failed: confidence [\d.]+, (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [int(n) for n, _ in looks] == [min(n, needed) for n in range(2, needed + 2, 2)]
    assert looks[-1][1] == "enough, plan holds"
    assert all(pages) and "http-equiv" not in page.read_text().split("<style>")[0]


@pytest.mark.parametrize(("n", "code"), [(500, 0), (10, 1)])
def test_ctrl_c_ends_a_watch_with_what_it_saw_last(tmp_path, n, code):
    demands = write_demands(tmp_path / "demands.csv", 1, 0)
    command = [sys.executable, "-c", INTERRUPTIBLE, *GIVEN, "--demands", str(demands), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("Assumptions"):
                write_demands(demands, n - 1, 0, mode="a")
            if line.startswith(f"{n} demands, 0 failed"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate()
    assert (process.returncode, errors) == (code, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*GIVEN, "--seen", "3/2"], "3 failures in 2 demands cannot be"),
        (["--theta", "1.5", "--eps", "0.1", "--bound", "0.2"], "theta = 1.5 is no probability"),
        (
            ["--theta", "0.9", "--eps", "0.1", "--bound", "0.2", "--lowest", "0.15"],
            "p_l = 0.15 and eps = 0.1",
        ),
        (["--theta", "0.9", "--eps", "0.1", "--bound", "0.01"], "bound = 0.01 is below eps = 0.1"),
        (["--theta", "0.9", "--eps", "0.1", "--bound", "1.01"], "bound = 1.01 is no probability"),
        (["--theta", "0.9", "--eps", "0.1", "--bound", "nan"], "bound = nan is no probability"),
        ([*GIVEN, "--confidence", "1"], "endless demands"),
        (["--theta", "0.9", "--bound", "0.2"], "without a run both theta and eps must be given"),
        (
            [*GIVEN, "--demands", "demands.csv", "--plan", "plan.json"],
            "the plan is for bound = 0.02",
        ),
        ([*GIVEN, "--watch"], "there is no stream of demands"),
        ([*GIVEN, "--plan", "nowhere.json"], "there is no stream of demands"),
        ([*GIVEN, "--demands", "nowhere.csv"], "nowhere.csv cannot be read"),
        ([*GIVEN, "--profile", "nowhere.toml"], "nowhere.toml is no operational profile"),
        ([*GIVEN, "--write-plan", "new.json", "--allow", "-1"], "--allow -1"),
        (["nowhere", "--bound", "0.2"], "nowhere is not a run directory"),
    ],
)
def test_what_is_wrong_is_one_message(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_demands(tmp_path / "demands.csv", 1, 0)
    make_plan(PartialPrior(0.9, 0.001), 0.02, 0.9, 0).write(tmp_path / "plan.json")
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    "arguments",
    [
        [*GIVEN, "--seen", "half"],
        [*GIVEN, "--ahead", "0"],
        [*GIVEN, "--seen", "0/1", "--watch"],
        [*GIVEN, "--plan", "a", "--write-plan", "b"],
    ],
)
def test_what_cannot_be_asked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


def test_runs_that_say_nothing_of_failures(run, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    assert main([str(own), "--bound", "0.5", "--score", "test_loss"]) == 2
    assert "has no score test_loss that tells failures" in capsys.readouterr().err
    shutil.rmtree(own / "checkpoints")
    assert main([str(own), "--bound", "0.5"]) == 2
    assert "no checkpoint in" in capsys.readouterr().err
    text = (run / "job.toml").read_text()
    (own / "job.toml").write_text(re.sub(r'data = ".*"', 'data = "nowhere"', text))
    assert main([str(own), "--bound", "0.5"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_example_operates_a_run(run, tmp_path, monkeypatch, capsys):
    demands = tmp_path / "demands.csv"
    for more in ([], ["--only", "3"]):
        monkeypatch.setattr(sys, "argv", ["operation.py", str(run), str(demands), "--demands", "60", *more])
        runpy.run_path(str(ROOT / "examples/operation.py"), run_name="__main__")
        said = told(capsys, run, "--bound", "0.9", "--demands", demands)
        assert said["drift"]["p_value"] < 1e-9 if more else said["drift"]["p_value"] > 1e-3
    assert said["observed"]["demands"] == 120 and said["code"] == 1
