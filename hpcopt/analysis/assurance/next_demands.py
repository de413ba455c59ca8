"""Worst-case probability that the next t demands all succeed.

With r(x) = (1-x)^t, the least posterior mean of r over all priors with Pr(X <= eps) = theta and X >= p_l is

    v = inf  [theta L(x) r(x) + (1 - theta) L(y) r(y)] / [theta L(x) + (1 - theta) L(y)],   p_l <= x <= eps < y

A value v can be undercut if and only if  theta h(x) + (1 - theta) h(y) < 0  somewhere, h = L (r - v)  (Dinkelbach,
Management Science 13, 1967). h is 0 at 0, rises to one maximum, falls through the zero of r - v to one minimum m, and
rises to 0 at 1; its slope is 0 where  r(x) = v (n x - k) / ((n + t) x - k).  No prior is needed that does better than
x = y = eps, so v <= r(eps), the zero of r - v lies beyond eps and so does m: then y = m, and x is an end of [p_l, eps],
where a function with one maximum is least. From such a pair comes the next v (Newton's way, which ends in a few steps);
halving beside it bounds their number.
"""

import math
from dataclasses import dataclass

from hpcopt.analysis.assurance.prior import PartialPrior, TwoPoints, log_ratio, probability, require_counts
from hpcopt.errors import JobError

HALVINGS = 64
NARROW, TINY = 1e-15, 1e-300


@dataclass(frozen=True)
class Survival:
    """The worst-case probability that ``demands`` more all succeed, and the prior that attains it."""

    demands: int
    value: float
    prior: TwoPoints


def survival(prior: PartialPrior, ahead: int, failures: int, demands: int) -> Survival:
    """The least E[(1-X)^ahead | failures in demands] over all priors that agree with the partial one.

    Args:
        prior: what is known before operation.
        ahead: t, the next demands.
        failures, demands: of operation so far.

    Raises:
        JobError: more failures than demands, or no demand ahead.
    """
    require_counts(failures, demands)
    if ahead < 1:
        raise JobError(f"surviving {ahead} demands says nothing: give 1 or more")
    at_eps = _all_succeed(prior.eps, ahead)
    if prior.theta == 1:
        return Survival(ahead, at_eps, TwoPoints(prior.eps, prior.eps))
    if prior.theta == 0 or (failures and not prior.p_l):  # all of the posterior is beyond eps, and may be at 1
        return Survival(ahead, 0.0, TwoPoints(prior.p_l, 1.0))
    low, best = 0.0, Survival(ahead, at_eps, TwoPoints(prior.eps, prior.eps))
    while best.value > TINY:
        found = _least(prior, best.value, ahead, failures, demands)
        if found.value >= best.value * (1 - NARROW):
            break
        best, middle = found, (low + found.value) / 2
        found = _least(prior, middle, ahead, failures, demands)
        if found.value < middle:
            best = found
        else:
            low = middle
    return best


def _least(prior: PartialPrior, v: float, t: int, k: int, n: int) -> Survival:
    """The better of the two candidates that may undercut v."""
    y = _minimum(v, t, k, n)
    return min((_mean(prior, x, y, t, k, n) for x in (prior.p_l, prior.eps)), key=lambda found: found.value)


def _mean(prior: PartialPrior, x: float, y: float, t: int, k: int, n: int) -> Survival:
    """E[r(X) | k, n] under the prior with theta at x and the rest at y."""
    weight = float(probability(prior.log_odds + log_ratio(x, y, k, n)))
    value = weight * _all_succeed(x, t) + (1 - weight) * _all_succeed(y, t)
    return Survival(t, value, TwoPoints(x, y))


def _minimum(v: float, t: int, k: int, n: int) -> float:
    """Where L (r - v) is least: x = k/n + d, and d > 0 solves  t ln(1-x) + ln(1 + t x / (n d)) = ln v,  whose left side
    falls from infinity to minus infinity.
    """
    if k == n:  # also without any demand: L does not fall towards 1
        return 1.0
    mode = k / n
    low, high = math.log(5e-324), math.log1p(-mode)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        d = math.exp(middle)
        x = min(mode + d, 1 - 1e-16)
        too_near = t * math.log1p(-x) + math.log1p(t * x / n / d) > math.log(v)
        low, high = (middle, high) if too_near else (low, middle)
    return min(mode + math.exp(high), 1.0)


def _all_succeed(x: float, t: int) -> float:
    return math.exp(t * math.log1p(-x)) if x < 1 else 0.0
