"""Odd polynomials of degree 5 which, one after the other, bring singular values between 0 and 1 close to 1.

Jordan's (2024) is the same in every round. It rises steepest at 0, and five rounds leave all but tiny values between .7
and 1.2. Of the minimax ones (Amsel, Persson, Musco, Gower 2025, arXiv:2505.16932, "Polar Express") each comes nearest
to 1 on the interval that the one before it has left, and so does their composition: it gets as far in a round less.
"""

from functools import cache
from typing import Literal, NamedTuple

import numpy as np

Polynomial = tuple[float, float, float]  # a x + b x^3 + c x^5

JORDAN: Polynomial = (3.4445, -4.7750, 2.0315)
BAND = 0.3  # minimax rounds end so near to 1, as Jordan's do
DIGITS = 6  # of coefficients: the same on processors that round differently


class Rounds(NamedTuple):
    """What a matrix goes through.

    Attributes:
        polynomials: one a round.
        tight: singular values are first divided by the fourth root of the sum of their fourth powers, which is nearer
            to the largest of them than the root of the sum of their squares.
    """

    polynomials: tuple[Polynomial, ...]
    tight: bool


def rounds(kind: Literal["minimax", "jordan"], iterations: int) -> Rounds:
    """So many, at least one."""
    return Rounds((JORDAN,) * iterations, False) if kind == "jordan" else Rounds(minimax(iterations), True)


@cache
def minimax(iterations: int) -> tuple[Polynomial, ...]:
    """Those that lift the least singular value into the band that so many rounds can."""
    low, high = 1e-12, 1 - BAND
    for _ in range(50):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if _error(_chain(middle, iterations), middle) > BAND else (low, middle)
    return tuple((round(a, DIGITS), round(b, DIGITS), round(c, DIGITS)) for a, b, c in _chain(high, iterations))


def _chain(low: float, iterations: int) -> list[Polynomial]:
    """Each nearest to 1 on the image, under those before it, of all between ``low`` and 1."""
    high, found = 1.0, []
    for _ in range(iterations):
        found.append(_nearest(low, high))
        low = _value(found[-1], low)
        high = 2 - low
    return found


def _nearest(low: float, high: float) -> Polynomial:
    """The one whose largest distance from 1 on [low, high] is least: it is taken at four places, with signs in turn,
    which Remez' exchange finds.
    """
    inner = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(20):
        places, signs = np.array([low, *inner, high]), np.array([1, -1, 1, -1])
        a, b, c, _ = np.linalg.solve(np.stack([places, places**3, places**5, signs], 1), np.ones(4))
        root = np.sqrt(9 * b**2 - 20 * a * c)
        inner = tuple(np.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
    return float(a), float(b), float(c)


def _error(polynomials: list[Polynomial], x: float) -> float:
    for polynomial in polynomials:
        x = _value(polynomial, x)
    return abs(1 - x)


def _value(polynomial: Polynomial, x: float) -> float:
    a, b, c = polynomial
    return a * x + b * x**3 + c * x**5
