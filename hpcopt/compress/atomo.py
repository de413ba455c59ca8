"""ATOMO: unbiased sparsification of the coefficients in an orthonormal basis, with the probabilities of least variance.

Wang et al. 2018, arXiv:1806.04090. For ``g = sum l_i a_i`` the estimator ``sum (l_i t_i / p_i) a_i`` with t_i = 1
with probability p_i is unbiased with variance ``sum l_i^2 / p_i - |g|^2``. Given ``sum p_i = s``, alg. 1 minimises
it: p_i is proportional to |l_i|, except where that would exceed 1.

Bases: ``entries`` (the values themselves), ``fourier`` (real frequencies, each with its phase), ``svd`` (singular
vectors of the parameter as a matrix).

The paper draws the t_i independently. Here one uniform number places a comb of step 1 on the cumulated p_i
(systematic sampling): the p_i are the same, and so, the a_i being orthonormal, is the variance; but the number of
atoms sent is s, rounded up or down, and the payload's size is certain.

Atoms are found for values near 1: magnitudes beyond 2^64 or below 2^-64 are brought there by a power of two, since
decompositions square what they are given.

Payload, version 2: uint32 count, int32 exponent of that power. ``entries``: count uint32 places, count float32
coefficients l/p. ``fourier``: count uint32 frequencies, count complex64 coefficients. ``svd``: for each atom l u / p
(float32, rows), then v (float32, columns).
"""

import math
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from hpcopt import kernels
from hpcopt.compress.codec import NOT_FINITE, Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.compress.finite import MOST
from hpcopt.errors import PayloadError
from hpcopt.seeds import EVERY_RANK, derive

ORDINARY = 64  # exponents up to here, of either sign

Doubles = NDArray[np.float64]
Places = NDArray[np.int64]


def probabilities(coefficients: Doubles, budget: float) -> Doubles:
    """The p, (n,), that minimise ``sum l_i^2 / p_i`` with ``sum p = min(budget, number of non-zero l)`` and
    ``p <= 1`` (alg. 1).

    Args:
        coefficients: l, (n,); signs do not matter.
        budget: s > 0, the expected number of atoms.
    """
    sizes = np.abs(coefficients)
    order = np.argsort(-sizes, kind="stable")
    tails = np.cumsum(sizes[order][::-1])[::-1]  # sum of l from the i-th largest down
    certain = 0  # how many of the largest are always sent
    while certain < sizes.size and tails[certain] > 0 and sizes[order[certain]] * (budget - certain) > tails[certain]:
        certain += 1
    p = np.zeros(sizes.size)
    p[order[:certain]] = 1
    if certain < sizes.size and tails[certain] > 0:
        rest = order[certain:]
        p[rest] = np.minimum(1.0, sizes[rest] * (budget - certain) / tails[certain])
    return p


def comb(p: Doubles, start: float) -> Places:
    """Systematic sampling: the places i where ``start + integer`` falls into the stretch of length p_i; 0 <= start <
    1. Place i is drawn with probability p_i.
    """
    ends = np.cumsum(p)
    teeth = np.arange(start, ends[-1] if ends.size else 0.0, 1.0)
    return np.unique(np.searchsorted(ends, teeth, side="right"))


class Atomo(Codec):
    """Least-variance sparsification; ``svd`` sees the parameter as a matrix of its last dimensions' ``columns``."""

    name: Literal["atomo"] = "atomo"
    basis: Literal["entries", "fourier", "svd"] = Field(
        "svd", description="what atoms are: entries, Fourier modes or rank-one matrices"
    )
    share: float = Field(0.05, gt=0, le=1, description="of the dense bytes; gives the expected number of atoms")
    columns: int | None = Field(None, ge=1, description="of the matrix, for svd; None: about square")

    wire_version: ClassVar[int] = 2

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Self:
        """With the parameter's own columns."""
        columns = int(np.prod(shape[1:])) if len(shape) > 1 else None
        return self.model_copy(update={"columns": columns}) if columns and not self.columns else self

    def budget(self, n: int) -> float:
        """The expected number of atoms, at least 1."""
        return max(1.0, self.share * 4 * n / self._atom_bytes(n))

    def gain(self, n: int) -> float:
        """At most every atom sent is as large as the largest one, or as their sum over the budget."""
        atoms, budget = self._atoms(n), self.budget(n)
        if self.basis == "entries":
            return max(1.0, atoms / budget)
        largest_sum = (budget + 1) * max(1.0, math.sqrt(atoms) / budget)  # of atoms, over the 2-norm
        return 2 * largest_sum if self.basis == "fourier" else largest_sum * math.sqrt(n)

    def variance(self, n: int) -> float:
        """``atoms / budget - 1``: p uniform would do that, and the p used is better."""
        return max(0.0, self._atoms(n) / self.budget(n) - 1)

    def max_bytes(self, n: int) -> int:
        """Header and the budget of atoms, rounded up."""
        return 8 + self._atom_bytes(n) * min(self._atoms(n), int(np.ceil(self.budget(n) + 1e-9)))

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        worst = kernels.levels.worst(x)
        require_finite(worst, self)
        exponent = _beyond(worst)
        payload[4:8].view(np.int32)[0] = exponent
        x = np.ldexp(x, -exponent) if exponent else x
        if self.basis == "svd":
            return self._encode_svd(x, seed, first, payload, exponent)
        if self.basis == "entries":
            coefficients: Doubles | NDArray[np.complex128] = x.astype(np.float64)
            sizes = np.abs(coefficients)
        else:
            coefficients = np.fft.rfft(x.astype(np.float64), norm="ortho")
            sizes = np.abs(coefficients) * np.sqrt(_multiplicity(x.size))
        places, p = self._draw(sizes, seed, first, x.size)
        payload[:4].view(np.uint32)[0] = places.size
        end, size = 8 + 4 * places.size, 8 + self._atom_bytes(x.size) * places.size
        payload[8:end].view(np.uint32)[:] = places
        values = payload[end:size].view(np.float32 if self.basis == "entries" else np.complex64)
        values[:] = coefficients[places] / p
        largest = (
            np.abs(values).max(initial=0) if self.basis == "entries" else 2 / np.sqrt(x.size) * np.abs(values).sum()
        )
        self._require_range(float(largest), exponent)
        return size

    def _encode_svd(self, x: Floats, seed: int, first: int, payload: Bytes, exponent: int) -> int:
        rows, columns = self._shape(x.size)
        matrix = np.zeros(rows * columns, np.float32)
        matrix[: x.size] = x
        u, sizes, vt = torch.linalg.svd(torch.from_numpy(matrix).view(rows, columns), full_matrices=False)
        places, p = self._draw(sizes.double().numpy(), seed, first, x.size)
        payload[:4].view(np.uint32)[0] = places.size
        size = 8 + self._atom_bytes(x.size) * places.size
        atoms = payload[8:size].view(np.float32).reshape(places.size, rows + columns)
        coefficients = sizes.numpy()[places] / p
        atoms[:, :rows] = (u.numpy()[:, places] * coefficients).T
        atoms[:, rows:] = vt.numpy()[places]
        self._require_range(float(coefficients.sum()), exponent)
        return size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        n = out.size
        require_bytes(payload, 8, self)
        count, exponent = int(payload[:4].view(np.uint32)[0]), int(payload[4:8].view(np.int32)[0])
        require_bytes(payload, 8 + self._atom_bytes(n) * count, self)
        if not add:
            out[:] = 0
        if self.basis == "svd":
            rows, columns = self._shape(n)
            atoms = torch.from_numpy(
                payload[8 : 8 + self._atom_bytes(n) * count].view(np.float32).reshape(count, rows + columns)
            )
            dense = (atoms[:, :rows].T @ atoms[:, rows:]).view(-1)[:n]
            torch.from_numpy(out).add_(torch.from_numpy(_ldexp(dense.numpy(), exponent)), alpha=weight)
            return
        places = payload[8 : 8 + 4 * count].view(np.uint32)
        rest = payload[8 + 4 * count : 8 + self._atom_bytes(n) * count]
        if count and places.max() >= self._atoms(n):
            raise PayloadError(f"codec {self.name!r}: a place in the payload is beyond the {n} values of the tensor")
        if self.basis == "entries":
            kernels.sparse.scatter(_ldexp(rest.view(np.float32), exponent), places, np.float32(weight), out)
        elif count:
            spectrum = np.zeros(n // 2 + 1, np.complex64)
            spectrum[places] = rest.view(np.complex64)
            values = np.fft.irfft(spectrum, n, norm="ortho").astype(np.float32)
            out += np.float32(weight) * _ldexp(values, exponent)

    def _draw(self, sizes: Doubles, seed: int, first: int, n: int) -> tuple[Places, Doubles]:
        """The places of the atoms to send, and their probabilities."""
        p = probabilities(sizes, self.budget(n))
        start = derive(seed, first, EVERY_RANK, "comb") / 2**63
        places = comb(p, start)
        return places, p[places]

    def _require_range(self, largest: float, exponent: int) -> None:
        """Raise NonFiniteError if decoded magnitudes, at most ``largest`` times a power of two, may leave float32."""
        if largest * 2.0**exponent > MOST:
            require_finite(NOT_FINITE, self)

    def _shape(self, n: int) -> tuple[int, int]:
        """Rows and columns of the matrix that n values are filled into, row by row; the last row may be short."""
        columns = min(max(1, n), self.columns or int(np.ceil(np.sqrt(n))) or 1)
        return -(-n // columns), columns

    def _atoms(self, n: int) -> int:
        return {"entries": n, "fourier": n // 2 + 1 if n else 0, "svd": min(self._shape(n))}[self.basis]

    def _atom_bytes(self, n: int) -> int:
        return {"entries": 8, "fourier": 12, "svd": 4 * sum(self._shape(n))}[self.basis]


def _beyond(worst_bits: int) -> int:
    """The exponent of a largest magnitude, given as bits, that decompositions should not see; else 0."""
    exponent = math.frexp(float(np.int32(worst_bits).view(np.float32)))[1]
    return exponent if abs(exponent) > ORDINARY else 0


def _ldexp(values: Floats, exponent: int) -> Floats:
    """``values * 2^exponent``; of a damaged payload perhaps Inf."""
    if not exponent:
        return values
    with np.errstate(over="ignore"):
        return np.ldexp(values, np.int32(exponent))


def _multiplicity(n: int) -> Doubles:
    """How many times each frequency of a real transform of n values counts in the sum of squares: 1 for the ends,
    else 2.
    """
    counts = np.full(n // 2 + 1 if n else 0, 2.0)
    counts[:1] = 1
    if n % 2 == 0:
        counts[-1:] = 1
    return counts
