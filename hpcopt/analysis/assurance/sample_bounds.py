"""What samples say of a probability of failure: upper bounds that hold with a confidence, under an operational profile.

The m samples fall into classes c, m_c each, of which k_c failed, and the profile weighs the classes w_c. Two bounds on
sum w_c p_c, of which one is to be chosen before the samples are seen:

``clopper-pearson``: no weighted sum is more than R = max_c w_c / (m_c / m) times the plain one, and Clopper and Pearson
(Biometrika 26, 1934) bound that one exactly. They do, for theta >= 3/4, also where classes have samples of fixed
numbers, as a sum of Bernoulli variables of unlike chances falls a whole failure and more below its mean no more often
than one of like chances (Hoeffding, Ann. Math. Stat. 27, 1956). The samples count as m / R.

``hoeffding``: sum w_c k_c / m_c has independent terms of range w_c / m_c, so it strays below its mean by as much as
sqrt(ln(1/(1 - theta)) / (2 m')) with a probability of at most 1 - theta, m' = 1 / sum(w_c^2 / m_c), Kish's effective
size of the sample (Hoeffding, JASA 58, 1963).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpcopt.analysis.assurance.distributions import beta_below, beta_quantile
from hpcopt.analysis.assurance.prior import require_counts, require_probability
from hpcopt.errors import DataError

Method = Literal["clopper-pearson", "hoeffding"]


@dataclass(frozen=True)
class Samples:
    """Samples that were tried, by class.

    Attributes:
        counts: how many of each class.
        failures: how many of them failed.
    """

    counts: Mapping[str, int]
    failures: Mapping[str, int]

    def __post_init__(self) -> None:
        require_counts([self.failures.get(name, 0) for name in self.counts], list(self.counts.values()))

    @property
    def total(self) -> int:
        """m."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """k."""
        return sum(self.failures.values())

    @property
    def shares(self) -> dict[str, float]:
        """Of each class."""
        return {name: count / self.total for name, count in self.counts.items()}


@dataclass(frozen=True)
class Weighing:
    """Samples as the profile weighs them.

    Attributes:
        failure_rate: sum w_c k_c / m_c, the estimate.
        effective: as many samples as these count for, at most ``samples.total``.
        worst_ratio: R, the largest weight of a class over its share of the samples.
    """

    samples: Samples
    method: Method
    failure_rate: float
    effective: float
    worst_ratio: float

    def bound(self, theta: float) -> float:
        """eps: with confidence theta the network fails no more often."""
        require_probability("theta", theta)
        if theta == 1:
            return 1.0
        if self.method == "hoeffding":
            return min(1.0, self.failure_rate + math.sqrt(-math.log1p(-theta) / (2 * self.effective)))

        k, m = self.samples.failed, self.samples.total
        return 1.0 if k == m else min(1.0, self.worst_ratio * beta_quantile(k + 1, m - k, theta))

    def confidence(self, eps: float) -> float:
        """theta: the confidence with which the network fails no more often than eps; the inverse of ``bound``."""
        require_probability("eps", eps)
        if eps == 1:
            return 1.0
        if self.method == "hoeffding":
            return -math.expm1(-2 * self.effective * max(0.0, eps - self.failure_rate) ** 2)

        k, m = self.samples.failed, self.samples.total
        return 0.0 if k == m else float(beta_below(k + 1, m - k, min(1.0, eps / self.worst_ratio)))


def weigh(samples: Samples, profile: Mapping[str, float] | None = None, method: Method = "clopper-pearson") -> Weighing:
    """Weigh samples by an operational profile; by default as they are.

    Raises:
        DataError: there are no samples, or none of a class that the profile has.
    """
    if not samples.total:
        raise DataError("there are no samples to bound a probability of failure by")
    weights = samples.shares if profile is None else {name: w for name, w in profile.items() if w > 0}
    if missing := [name for name in weights if not samples.counts.get(name)]:
        known = ", ".join(sorted(name for name, count in samples.counts.items() if count))
        raise DataError(
            f"the operational profile has {', '.join(missing)}, of which there are no test samples; they have {known}"
        )
    m = np.array([samples.counts[name] for name in weights], np.float64)
    k = np.array([samples.failures.get(name, 0) for name in weights], np.float64)
    w = np.array(list(weights.values()))
    worst = max(1.0, float((w * samples.total / m).max()))
    effective = 1 / float((w**2 / m).sum()) if method == "hoeffding" else samples.total / worst
    return Weighing(samples, method, float((w * k / m).sum()), effective, worst)
