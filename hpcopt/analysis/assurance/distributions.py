"""Distribution functions, by scipy, which is imported when the first is asked for."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpcopt.errors import JobError

Floats = NDArray[np.float64]


def beta_below(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Floats:
    """Pr(X <= x), X of Beta(a, b)."""
    return np.asarray(_special().betainc(a, b, x))


def beta_quantile(a: float, b: float, probability: float) -> float:
    """The x with Pr(X <= x) = probability, X of Beta(a, b)."""
    return float(_special().betaincinv(a, b, probability))


def chi_square_above(freedom: int, x: float) -> float:
    """Pr(X >= x), X of chi-square."""
    return float(_special().chdtrc(freedom, x))


def multinomial(counts: NDArray[np.int64], weights: Floats) -> Floats:
    """The probability of each row of counts, (rows, classes), where the classes have these weights, (classes,)."""
    log_factorial = _special().gammaln
    ways = log_factorial(counts.sum(-1) + 1.0) - log_factorial(counts + 1.0).sum(-1)
    return np.asarray(np.exp(ways + (counts * np.log(weights)).sum(-1)))


def _special() -> Any:
    try:
        import scipy.special
    except ImportError as cause:
        raise JobError("assurance needs scipy: `pip install scipy`, or the extra `assure`") from cause
    return scipy.special
