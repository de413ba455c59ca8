"""Bounds from samples are the textbook's, hold as often as they say under a profile, and tell what weighing costs."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from hpcopt.analysis.assurance.sample_bounds import Samples, weigh
from hpcopt.errors import DataError, JobError

PROFILE = {"a": 0.7, "b": 0.2, "c": 0.1}
COUNTS = {"a": 40, "b": 80, "c": 80}


@pytest.mark.parametrize(("k", "m"), [(0, 100), (7, 360), (99, 100), (3, 10**9)])
def test_clopper_pearson_is_where_the_binomial_tail_is_the_rest(k, m):
    weighing = weigh(Samples({"all": m}, {"all": k}))
    eps = weighing.bound(0.9)
    assert binom.cdf(k, m, eps) == pytest.approx(0.1, rel=1e-6)
    assert weighing.confidence(eps) == pytest.approx(0.9)
    assert weighing.effective == m


def test_hoeffding_is_its_formula():
    weighing = weigh(Samples({"all": 400}, {"all": 20}), method="hoeffding")
    assert weighing.bound(0.95) == pytest.approx(0.05 + math.sqrt(math.log(20) / 800))
    assert weighing.confidence(weighing.bound(0.95)) == pytest.approx(0.95)
    assert weighing.confidence(0.04) == 0


def test_all_or_certainty_bound_nothing():
    for method in ("clopper-pearson", "hoeffding"):
        weighing = weigh(Samples({"all": 5}, {"all": 5}), method=method)
        assert weighing.bound(0.9) == 1 and weighing.bound(1) == 1 and weighing.confidence(1) == 1


def test_what_weighing_costs():
    samples = Samples(COUNTS, {"a": 1, "b": 4, "c": 0})
    rate = 0.7 / 40 + 0.2 * 4 / 80
    by_worst, by_kish = (weigh(samples, PROFILE, method) for method in ("clopper-pearson", "hoeffding"))
    assert by_worst.failure_rate == by_kish.failure_rate == pytest.approx(rate)
    assert by_worst.effective == pytest.approx(200 / (0.7 / 0.2))
    assert by_kish.effective == pytest.approx(1 / (0.49 / 40 + 0.04 / 80 + 0.01 / 80))
    as_they_are = {name: count / 200 for name, count in COUNTS.items()}
    for method in ("clopper-pearson", "hoeffding"):
        same = weigh(samples, as_they_are, method)
        assert same.effective == pytest.approx(200)
        assert same.bound(0.9) == pytest.approx(weigh(samples, None, method).bound(0.9))


@pytest.mark.parametrize("method", ["clopper-pearson", "hoeffding"])
@pytest.mark.parametrize("rates", [(0.02, 0.02, 0.02), (0.1, 0.0, 0.0), (0.0, 0.0, 0.3), (0.03, 0.3, 0.01)])
def test_bounds_hold_as_often_as_they_say(method, rates):
    rng = np.random.default_rng(1)
    truth = sum(w * p for w, p in zip(PROFILE.values(), rates, strict=True))
    drawn = rng.binomial(list(COUNTS.values()), rates, size=(4000, 3))
    tried, counts = np.unique(drawn, axis=0, return_counts=True)
    wrong = 0
    for row, count in zip(tried.tolist(), counts, strict=True):
        failures = dict(zip(COUNTS, row, strict=True))
        wrong += count * (weigh(Samples(COUNTS, failures), PROFILE, method).bound(0.9) < truth)
    assert wrong / 4000 <= 0.1 + 3 * math.sqrt(0.09 / 4000)


def test_what_cannot_be_weighed():
    with pytest.raises(DataError, match="no samples"):
        weigh(Samples({}, {}))
    with pytest.raises(DataError, match="profile has d, of which there are no test samples; they have a, b, c"):
        weigh(Samples(COUNTS, {}), {"a": 0.5, "d": 0.5})
    assert weigh(Samples(COUNTS, {}), {"a": 1.0, "d": 0.0}).effective == pytest.approx(40)
    with pytest.raises(JobError, match="3 failures in 2 demands"):
        Samples({"a": 2}, {"a": 3})
    with pytest.raises(JobError, match=r"theta = 1\.5"):
        weigh(Samples({"a": 2}, {})).bound(1.5)
