"""A plan says when to stop, and the check of it finds the stop, and every way in which it was not followed."""

import dataclasses
import json
import re

import numpy as np
import pytest

from hpcopt.analysis.assurance.demands import Demands
from hpcopt.analysis.assurance.plan import check, make_plan, read_plan
from hpcopt.analysis.assurance.prior import PartialPrior
from hpcopt.analysis.assurance.worst_case import confidence
from hpcopt.errors import DataError, JobError

PRIOR = PartialPrior(0.9, 0.01, 0.002)
BOUND = 0.05


def stream(folder, failures) -> Demands:
    path = folder / "demands.csv"
    path.write_text("failure\n" + "".join(f"{int(f)}\n" for f in failures))
    return Demands(path)


def failing_at(n, *places):
    failures = np.zeros(n, int)
    failures[[place - 1 for place in places]] = 1
    return failures


@pytest.fixture
def plan():
    return make_plan(PRIOR, BOUND, 0.95, allowed=2, network="abc")


def state_of(plan, demands):
    found = check(plan, demands, PRIOR, "abc", None)
    assert found.followed
    return found.state, found.demands, found.failures, found.left, found.after


def test_it_stops_at_the_first_number_of_demands_that_is_enough(plan, tmp_path):
    n0, n1, n2 = plan.needed
    assert n0 < n1 < n2
    for k, n in enumerate(plan.needed):
        assert confidence(PRIOR, BOUND, k, n) >= 0.95 > confidence(PRIOR, BOUND, k, n - 1)
    assert state_of(plan, stream(tmp_path, [])) == ("goes on", 0, 0, n0, (0, 0))
    assert state_of(plan, stream(tmp_path, failing_at(n0 - 1))) == ("goes on", n0 - 1, 0, 1, (0, 0))
    assert state_of(plan, stream(tmp_path, failing_at(n0))) == ("holds", n0, 0, 0, (0, 0))
    assert state_of(plan, stream(tmp_path, failing_at(n0 + 9, n0 + 1))) == ("holds", n0, 0, 0, (9, 1))
    assert state_of(plan, stream(tmp_path, failing_at(n0, 1))) == ("goes on", n0, 1, n1 - n0, (0, 0))
    assert state_of(plan, stream(tmp_path, failing_at(n1, n0))) == ("holds", n1, 1, 0, (0, 0))
    assert state_of(plan, stream(tmp_path, failing_at(n2, 1, 2))) == ("holds", n2, 2, 0, (0, 0))
    assert state_of(plan, stream(tmp_path, failing_at(n2, 1, 2, 9))) == ("rejected", 9, 3, 0, (n2 - 9, 0))


def test_demands_from_before_do_not_count(tmp_path):
    before = failing_at(7, 1, 2, 3)
    plan = make_plan(PRIOR, BOUND, 0.95, allowed=0, seen=stream(tmp_path, before))
    now = stream(tmp_path, [*before, *failing_at(plan.needed[0])])
    found = check(plan, now, PRIOR, "", None)
    assert (plan.start, found.state, found.failures, found.breaches) == (7, "holds", 0, ())
    changed = stream(tmp_path, [0] * 20)
    assert (
        "the demands that were there when the plan was written have changed"
        in check(plan, changed, PRIOR, "", None).breaches
    )
    with pytest.raises(DataError, match="has 2 demands, and had 7"):
        check(plan, stream(tmp_path, [0, 1]), PRIOR, "", None)


def test_it_goes_through_a_file_and_is_written_once(plan, tmp_path):
    plan = dataclasses.replace(plan, profile={"0": 0.1, "1": 0.9})
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    with pytest.raises(JobError, match="a plan is written once"):
        plan.write(tmp_path / "plan.json")
    with pytest.raises(JobError, match="cannot write"):
        plan.write(tmp_path / "missing" / "plan.json")
    whole = json.loads((tmp_path / "plan.json").read_text())
    spoilt = [{**whole, key: value} for key, value in [("needed", []), ("start", -1), ("bound", "x"), ("prior", 3)]]
    for text in ("{}", "[1]", "x", *map(json.dumps, spoilt)):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(JobError, match=r"is no plan \("):
            read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("prior", "network", "profile", "said"),
    [
        (PartialPrior(0.95, 0.01, 0.002), "abc", None, r"theta is 0\.95, and was 0\.9"),
        (PartialPrior(0.9, 0.009, 0.002), "abc", None, r"eps is 0\.009"),
        (PartialPrior(0.9, 0.01, 0.003), "abc", None, r"p_l is 0\.003"),
        (PRIOR, "abd", None, "other weights"),
        (PRIOR, "abc", {"0": 1.0}, "profile is another"),
    ],
)
def test_it_was_not_followed(plan, prior, network, profile, said, tmp_path):
    found = check(plan, stream(tmp_path, [0]), prior, network, profile)
    assert not found.followed and len(found.breaches) == 1
    assert re.search(said, found.breaches[0])


def test_no_plan_for_what_no_demands_can_show():
    with pytest.raises(JobError, match=r"with 0 failures no number of demands .* give a larger bound"):
        make_plan(PRIOR, PRIOR.eps, 0.95, allowed=0)
    with pytest.raises(JobError, match=r"with 1 failures no number of demands .* give a p_l above 0"):
        make_plan(PartialPrior(0.9, 0.01), BOUND, 0.95, allowed=1)
