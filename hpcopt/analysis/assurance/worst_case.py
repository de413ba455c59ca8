"""Worst-case confidence in a bound on the probability of failure per demand, and the demands that it takes.

Of all priors with Pr(X <= eps) = theta and X >= p_l, those that leave least confidence in X <= p, for p >= eps, have
two points, since the posterior is a ratio that is linear in the part of the prior below eps, and in that above:

    inf Pr(X <= p | k, n) = theta L(x) / (theta L(x) + (1 - theta) L(y)),   L(x) = x^k (1-x)^(n-k)

with x the end of [p_l, eps] that explains the demands worse (L has one maximum, so its least value on an interval is at
an end), and y the point beyond p that explains them best: max(p, k/n).
"""

import numpy as np
from numpy.typing import ArrayLike

from hpcopt.analysis.assurance.distributions import beta_below
from hpcopt.analysis.assurance.prior import (
    Floats,
    PartialPrior,
    TwoPoints,
    log_odds,
    log_ratio,
    probability,
    require_counts,
    require_probability,
)
from hpcopt.errors import JobError

MOST_DEMANDS = 1 << 62


def confidence(prior: PartialPrior, bound: float, failures: ArrayLike, demands: ArrayLike) -> Floats:
    """The least Pr(X <= bound | failures in demands) over all priors that agree with the partial one.

    Args:
        prior: what is known before operation.
        bound: p; below eps nothing is known of it, and the confidence is 0.
        failures, demands: counts, of any shapes that fit each other.

    Returns:
        One number for each pair of counts, float64; of shape () for two numbers.

    Raises:
        JobError: more failures than demands, or a bound that is no probability.
    """
    return probability(confidence_log_odds(prior, bound, failures, demands))


def confidence_log_odds(prior: PartialPrior, bound: float, failures: ArrayLike, demands: ArrayLike) -> Floats:
    """The logarithmic odds of ``confidence``, which tell 1 - 1e-20 from 1."""
    require_probability("bound", bound)
    k, n = require_counts(failures, demands)
    if bound == 1 or (prior.theta == 1 and bound >= prior.eps):
        return np.full(k.shape, np.inf)
    if bound < prior.eps or prior.theta == 0:
        return np.full(k.shape, -np.inf)
    return prior.log_odds + _least_ratio(prior, _beyond(bound, k, n), k, n)


def attained(prior: PartialPrior, bound: float, failures: int, demands: int) -> TwoPoints:
    """The prior that leaves no more than ``confidence``; y is approached from above, not reached, where y = bound."""
    k, n = require_counts(failures, demands)
    y = float(_beyond(bound, k, n))
    x = min((prior.p_l, prior.eps), key=lambda x: float(log_ratio(x, y, k, n)))
    return TwoPoints(x, y)


def demands_needed(prior: PartialPrior, bound: float, wanted: float, failures: int = 0) -> int | None:
    """The fewest demands, all told, that give the wanted confidence if ``failures`` of them fail; None if no number of
    demands does.

    For a given number of failures the confidence only grows with the demands, so the number is found by halving.

    Raises:
        JobError: what is wanted is no probability below 1, or a count is negative.
    """
    require_probability("confidence", wanted)
    if wanted == 1:
        raise JobError("confidence = 1 would take endless demands: give one below 1, such as 0.95")
    if failures < 0:
        raise JobError(f"{failures} failures cannot be: give 0 or more")

    def enough(n: int) -> bool:
        return bool(confidence_log_odds(prior, bound, failures, n) >= log_odds(wanted))

    few, many = failures - 1, max(1, failures)
    if enough(failures):
        return failures
    while not enough(many):
        if many >= MOST_DEMANDS:
            return None
        few, many = many, many * 2
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def uniform_confidence(bound: float, failures: ArrayLike, demands: ArrayLike) -> Floats:
    """Pr(X <= bound | failures in demands) under the uniform prior Beta(1, 1): the usual posterior, for comparison. It
    takes an even chance of X > 1/2 for knowledge, and knows nothing of what was known before.
    """
    k, n = require_counts(failures, demands)
    return beta_below(k + 1.0, n - k + 1.0, bound)


def _beyond(bound: float, k: ArrayLike, n: ArrayLike) -> Floats:
    """max(p, k/n): the point beyond p that explains the demands best."""
    k, n = np.asarray(k, np.float64), np.asarray(n, np.float64)
    return np.asarray(np.maximum(bound, k / np.maximum(n, 1)))


def _least_ratio(prior: PartialPrior, y: Floats, k: ArrayLike, n: ArrayLike) -> Floats:
    """ln L(x) - ln L(y) at the end of [p_l, eps] where it is less."""
    return np.minimum(log_ratio(prior.p_l, y, k, n), log_ratio(prior.eps, y, k, n))
