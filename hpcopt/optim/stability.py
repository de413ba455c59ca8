"""When remote stochastic gradients are stable, and how fast (arXiv:1905.01422, appendix A.1 and theorem 1).

On a quadratic of curvature L, with tau = lr L, beta the momentum and mu the observation factor, the error of an
iterate and of its mean gradient obey a linear recurrence with the characteristic polynomial::

    r^2 - rho r + beta (1 - mu tau) = 0,        rho = 1 + beta - tau (1 - beta (1 - mu))

The larger root's modulus is the factor by which the error shrinks in a step.
"""

import cmath
import math


def gain(tau: float, beta: float, mu: float) -> float:
    """The factor by which an error shrinks in a step; above 1 it grows.

    >>> round(gain(0.5, 0.0, 0.0), 6)  # plain gradient descent: 1 - tau
    0.5
    """
    rho = 1 + beta - tau * (1 - beta * (1 - mu))
    root = cmath.sqrt(rho * rho - 4 * beta * (1 - mu * tau))
    return max(abs(rho + root), abs(rho - root)) / 2


def largest_step(beta: float, mu: float) -> float:
    """The tau up to which steps are stable: the learning rate's limit is this over the largest curvature.

    >>> largest_step(0.0, 0.0)  # plain gradient descent
    2.0
    """
    return 2 * (1 + beta) / (1 - beta + 2 * beta * mu)


def largest_observation(tau: float, beta: float) -> float:
    """The mu up to which steps of size tau are stable, at most 1.

    Raises:
        ValueError: no observation factor makes such steps stable.
    """
    if beta == 0:
        if tau < 2:
            return 1.0
        raise ValueError(f"without momentum, steps of learning rate x curvature {tau:g} are not stable: stay below 2")
    found = (2 * (1 + beta) / tau - (1 - beta)) / (2 * beta)
    if found <= 0:
        raise ValueError(
            f"steps of learning rate x curvature {tau:g} are not stable at momentum {beta:g}: "
            f"stay below {largest_step(beta, 0):g}"
        )
    return min(found, 1.0)


def guideline(condition: float, c_beta: float = 2.0, c_mu: float = 2.0) -> tuple[float, float, float]:
    """Step, momentum and observation factor for a condition number, with no grid (theorem 1).

    Args:
        condition: largest over smallest curvature, well above 1.
        c_beta, c_mu: how far momentum and observation factor are from 1 and 0, in units of 1 / sqrt(condition).

    Returns:
        (tau, beta, mu), tau being the learning rate times the largest curvature. The error shrinks by about
        ``1 - c_beta / (2 sqrt(condition))`` a step, if ``c_beta (c_beta + c_mu) <= 8``.

    Raises:
        ValueError: the condition number is too small for these.
    """
    root = math.sqrt(condition)
    beta, mu = 1 - c_beta / root, c_mu / root
    if not (0 <= beta < 1 and 0 <= mu < 1):
        raise ValueError(f"a condition number of {condition:g} is too small: above {max(c_beta, c_mu) ** 2:g}")
    return min(2 / (c_beta + c_mu) * root, 0.999 * largest_step(beta, mu)), beta, mu
