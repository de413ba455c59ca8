"""What is known of the probability of failure before operation, and the likelihood that operation puts to it.

All is in logarithms of ratios of likelihoods, so a thousand million demands are as exact as ten.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpcopt.errors import JobError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PartialPrior:
    """Pr(X <= eps) >= theta and Pr(X >= p_l) = 1, of the probability X of failure per demand; nothing else.

    Attributes:
        theta: confidence in eps, 0 to 1.
        eps: bound that the evidence before operation gives.
        p_l: no network of this kind is better, for all that is known. Only failures make it matter, and with 0 one
            failure takes all confidence away: the worst prior holds the network, where it is good, for perfect.
    """

    theta: float
    eps: float
    p_l: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("theta", self.theta), ("eps", self.eps), ("p_l", self.p_l)):
            require_probability(name, value)
        if self.p_l > self.eps:
            raise JobError(
                f"p_l = {self.p_l:g} and eps = {self.eps:g} contradict each other: the network cannot be both worse "
                "than p_l for certain and better than eps; give a p_l of at most eps"
            )

    @property
    def log_odds(self) -> float:
        """ln(theta / (1 - theta))."""
        return log_odds(self.theta)


@dataclass(frozen=True)
class TwoPoints:
    """The prior that attains, or comes as close as one likes to, the worst case: theta at x, the rest at y."""

    x: float
    y: float


def require_probability(name: str, value: float) -> None:
    """Raise a JobError unless the value is in [0, 1]."""
    if not 0 <= value <= 1:  # nor NaN
        raise JobError(f"{name} = {value:g} is no probability: give one from 0 to 1")


def require_counts(failures: ArrayLike, demands: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The counts as integers, of one shape.

    Raises:
        JobError: one is negative, or there are more failures than demands.
    """
    k, n = np.broadcast_arrays(np.asarray(failures, np.int64), np.asarray(demands, np.int64))
    if (k < 0).any() or (k > n).any():
        at: Any = np.argmax((k < 0) | (k > n))
        raise JobError(f"{k.flat[at]} failures in {n.flat[at]} demands cannot be: give 0 <= failures <= demands")
    return k, n


def log_odds(probability: float) -> float:
    """ln(p / (1 - p))."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


def probability(odds: ArrayLike) -> Floats:
    """The probability of logarithmic odds; its inverse."""
    odds = np.asarray(odds, np.float64)
    rest = np.exp(-np.abs(odds))
    return np.asarray(np.where(odds >= 0, 1.0, rest) / (1 + rest))


def log_ratio(x: ArrayLike, y: ArrayLike, k: ArrayLike, n: ArrayLike) -> Floats:
    """ln L(x) - ln L(y), L(x) = x^k (1-x)^(n-k): how much better x explains k failures in n demands than y does.

    A ratio near 1 comes from the difference x - y, not from two large logarithms.
    """
    x, y, k, n = (np.asarray(value, np.float64) for value in (x, y, k, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        failing = np.where(k > 0, k * np.log1p((x - y) / y), 0.0)
        passing = np.where(n > k, (n - k) * np.log1p((y - x) / (1 - y)), 0.0)
        passing = np.where((n > k) & (y == 1), np.where(x == 1, 0.0, np.inf), passing)
        return np.asarray(failing + passing)
