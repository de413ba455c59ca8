"""The operational profile: how often each class of demands comes in operation, and whether a stream still follows it.

Drift is tested by Pearson's statistic, sum (o_c - e_c)^2 / e_c. Where each class is expected five times and more, it is
compared with chi-square; where that is too coarse, its distribution is summed over all outcomes, or drawn at random
where they are too many (the p-value of Monte Carlo tests, (1 + as extreme) / (1 + draws), is valid itself).
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcopt.analysis.assurance.distributions import chi_square_above, multinomial
from hpcopt.errors import DataError

FEW = 5  # expected of a class, below which chi-square is too coarse
MOST_OUTCOMES = 20_000
DRAWS = 20_000
SEED = 0
ROUNDING = 1e-9

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Drift:
    """The result of a test.

    Attributes:
        p_value: of a stream that follows the profile, to look at least as odd as this one.
        method: "exact", "chi-square" or "Monte Carlo".
        level: a smaller p-value is called drift.
    """

    p_value: float
    method: str
    level: float

    @property
    def found(self) -> bool:
        """Whether the stream has left the profile."""
        return self.p_value < self.level


def read_profile(path: Path) -> dict[str, float]:
    """Read weights by class: a TOML file with a table ``profile``, whose weights are scaled to add up to 1.

    Raises:
        DataError: the file is missing or no such file, a weight is negative, or all are 0.
    """
    try:
        weights = tomllib.loads(path.read_text(encoding="utf-8"))["profile"]
        found = {str(name): float(weight) for name, weight in weights.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as cause:
        raise DataError(f"{path} is no operational profile ({cause!r}): it takes a table [profile]") from None
    total = sum(found.values())
    if not all(weight >= 0 for weight in found.values()) or not 0 < total < math.inf:
        raise DataError(f"{path}: the weights of an operational profile are 0 or more, and not all 0")
    return {name: weight / total for name, weight in found.items()}


def drift_from_profile(observed: Mapping[str, int], profile: Mapping[str, float], level: float) -> Drift:
    """Test whether demands of these classes were drawn from the profile."""
    names = [name for name, weight in profile.items() if weight > 0]
    if any(count for name, count in observed.items() if name not in names):
        return Drift(0.0, "exact", level)  # the profile never gives that class
    o, w = np.array([observed.get(name, 0) for name in names], np.int64), np.array([profile[name] for name in names])
    n, c = int(o.sum()), len(names)
    if n == 0 or c == 1:
        return Drift(1.0, "exact", level)
    statistic = _pearson(o, n * w)
    if (n * w).min() >= FEW:
        return Drift(chi_square_above(c - 1, float(statistic)), "chi-square", level)
    if math.comb(n + c - 1, c - 1) <= MOST_OUTCOMES:
        every = np.array(list(_outcomes(n, c)), np.int64)

        as_odd = _pearson(every, n * w) >= statistic * (1 - ROUNDING)
        return Drift(min(1.0, float(multinomial(every[as_odd], w).sum())), "exact", level)
    drawn = np.random.default_rng(SEED).multinomial(n, w / w.sum(), size=DRAWS)
    return _among(_pearson(drawn, n * w), statistic, level)


def drift_from_samples(observed: Mapping[str, int], counts: Mapping[str, int], level: float) -> Drift:
    """Test whether demands of these classes and the test samples were drawn from one profile, which nobody knows."""
    names = list(dict.fromkeys([*counts, *observed]))
    o = np.array([observed.get(name, 0) for name in names], np.int64)
    both = o + np.array([counts.get(name, 0) for name in names], np.int64)
    o, both = o[both > 0], both[both > 0]
    n, m = int(o.sum()), int(both.sum())
    if n in (0, m) or len(o) == 1:
        return Drift(1.0, "exact", level)
    expected, scale = n * both / m, m / (m - n)  # the other row's terms are the same, times n / (m - n)
    statistic = scale * _pearson(o, expected)
    if min(expected.min(), (both - expected).min()) >= FEW:
        return Drift(chi_square_above(len(o) - 1, float(statistic)), "chi-square", level)
    drawn = np.random.default_rng(SEED).multivariate_hypergeometric(both, n, size=DRAWS, method="marginals")
    return _among(scale * _pearson(drawn, expected), statistic, level)


def level_of_look(level: float, look: int) -> float:
    """A level for the look-th test of a growing stream, from 1 on, such that all looks together, however many, call
    drift by chance with a probability of at most ``level``.
    """
    return level / (look * (look + 1))


def _pearson(observed: Counts, expected: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(((observed - expected) ** 2 / expected).sum(-1))


def _among(drawn: NDArray[np.float64], statistic: NDArray[np.float64], level: float) -> Drift:
    as_odd = int((drawn >= statistic * (1 - ROUNDING)).sum())
    return Drift((1 + as_odd) / (1 + len(drawn)), "Monte Carlo", level)


def _outcomes(n: int, classes: int) -> Iterator[tuple[int, ...]]:
    """All ways to deal n demands to classes."""
    if classes == 1:
        yield (n,)
        return
    for first in range(n + 1):
        for rest in _outcomes(n - first, classes - 1):
            yield (first, *rest)
