"""ATOMO: unbiased sparsification of the coefficients in an orthonormal basis, with the probabilities of least variance.

Wang et al. 2018, arXiv:1806.04090. For ``g = sum l_i a_i`` the estimator ``sum (l_i t_i / p_i) a_i`` with t_i = 1
with probability p_i is unbiased with variance ``sum l_i^2 / p_i - |g|^2``. Given ``sum p_i = s``, alg. 1 minimises
it: p_i is proportional to |l_i|, except where that would exceed 1.

Bases: ``entries`` (the values themselves), ``fourier`` (real frequencies, each with its phase), ``svd`` (singular
vectors of the parameter as a matrix).

The paper draws the t_i independently. Here one uniform number places a comb of step 1 on the cumulated p_i
(systematic sampling): the p_i are the same, and so, the a_i being orthonormal, is the variance; but the number of
atoms sent is s, rounded up or down, and the payload's size is certain.

Payload, version 1: uint32 count, uint32 zero. ``entries``: count uint32 places, count float32 coefficients l/p.
``fourier``: count uint32 frequencies, count complex64 coefficients. ``svd``: for each atom l u / p (float32, rows),
then v (float32, columns).
"""

from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, require_bytes, require_finite
from hpcopt.errors import PayloadError
from hpcopt.seeds import EVERY_RANK, derive

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

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Self:
        """With the parameter's own columns."""
        columns = int(np.prod(shape[1:])) if len(shape) > 1 else None
        return self.model_copy(update={"columns": columns}) if columns and not self.columns else self

    def budget(self, n: int) -> float:
        """The expected number of atoms, at least 1."""
        return max(1.0, self.share * 4 * n / self._atom_bytes(n))

    def variance(self, n: int) -> float:
        """``atoms / budget - 1``: p uniform would do that, and the p used is better."""
        return max(0.0, self._atoms(n) / self.budget(n) - 1)

    def max_bytes(self, n: int) -> int:
        """Header and the budget of atoms, rounded up."""
        return 8 + self._atom_bytes(n) * min(self._atoms(n), int(np.ceil(self.budget(n) + 1e-9)))

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        require_finite(kernels.qsgd.worst(x), self)
        if self.basis == "svd":
            return self._encode_svd(x, seed, first, payload)
        if self.basis == "entries":
            coefficients: Doubles | NDArray[np.complex128] = x.astype(np.float64)
            sizes = np.abs(coefficients)
        else:
            coefficients = np.fft.rfft(x.astype(np.float64), norm="ortho")
            sizes = np.abs(coefficients) * np.sqrt(_multiplicity(x.size))
        places, p = self._draw(sizes, seed, first, x.size)
        payload[:8].view(np.uint32)[:] = places.size, 0
        end, size = 8 + 4 * places.size, 8 + self._atom_bytes(x.size) * places.size
        payload[8:end].view(np.uint32)[:] = places
        values = payload[end:size].view(np.float32 if self.basis == "entries" else np.complex64)
        with np.errstate(over="ignore"):
            values[:] = coefficients[places] / p
        require_finite(kernels.qsgd.worst(values.view(np.float32)), self)
        return size

    def _encode_svd(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        rows, columns = self._shape(x.size)
        matrix = np.zeros(rows * columns, np.float32)
        matrix[: x.size] = x
        u, sizes, vt = torch.linalg.svd(torch.from_numpy(matrix).view(rows, columns), full_matrices=False)
        places, p = self._draw(sizes.double().numpy(), seed, first, x.size)
        payload[:8].view(np.uint32)[:] = places.size, 0
        size = 8 + self._atom_bytes(x.size) * places.size
        atoms = payload[8:size].view(np.float32).reshape(places.size, rows + columns)
        with np.errstate(over="ignore"):
            atoms[:, :rows] = (u.numpy()[:, places] * (sizes.numpy()[places] / p)).T
        atoms[:, rows:] = vt.numpy()[places]
        require_finite(kernels.qsgd.worst(atoms.ravel()), self)
        return size

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        n = out.size
        require_bytes(payload, 8, self)
        count = int(payload[:4].view(np.uint32)[0])
        require_bytes(payload, 8 + self._atom_bytes(n) * count, self)
        if not add:
            out[:] = 0
        if self.basis == "svd":
            rows, columns = self._shape(n)
            atoms = torch.from_numpy(
                payload[8 : 8 + self._atom_bytes(n) * count].view(np.float32).reshape(count, rows + columns)
            )
            dense = (atoms[:, :rows].T @ atoms[:, rows:]).view(-1)[:n]
            torch.from_numpy(out).add_(dense, alpha=weight)
            return
        places = payload[8 : 8 + 4 * count].view(np.uint32)
        rest = payload[8 + 4 * count : 8 + self._atom_bytes(n) * count]
        if count and places.max() >= self._atoms(n):
            raise PayloadError(f"codec {self.name!r}: a place in the payload is beyond the {n} values of the tensor")
        if self.basis == "entries":
            kernels.sparse.scatter(rest.view(np.float32), places, np.float32(weight), out)
        elif count:
            spectrum = np.zeros(n // 2 + 1, np.complex64)
            spectrum[places] = rest.view(np.complex64)
            out += np.float32(weight) * np.fft.irfft(spectrum, n, norm="ortho").astype(np.float32)

    def _draw(self, sizes: Doubles, seed: int, first: int, n: int) -> tuple[Places, Doubles]:
        """The places of the atoms to send, and their probabilities."""
        p = probabilities(sizes, self.budget(n))
        start = derive(seed, first, EVERY_RANK, "comb") / 2**63
        places = comb(p, start)
        return places, p[places]

    def _shape(self, n: int) -> tuple[int, int]:
        """Rows and columns of the matrix that n values are filled into, row by row; the last row may be short."""
        columns = min(max(1, n), self.columns or int(np.ceil(np.sqrt(n))) or 1)
        return -(-n // columns), columns

    def _atoms(self, n: int) -> int:
        return {"entries": n, "fourier": n // 2 + 1 if n else 0, "svd": min(self._shape(n))}[self.basis]

    def _atom_bytes(self, n: int) -> int:
        return {"entries": 8, "fourier": 12, "svd": 4 * sum(self._shape(n))}[self.basis]


def _multiplicity(n: int) -> Doubles:
    """How many times each frequency of a real transform of n values counts in the sum of squares: 1 for the ends,
    else 2.
    """
    counts = np.full(n // 2 + 1 if n else 0, 2.0)
    counts[:1] = 1
    if n % 2 == 0:
        counts[-1:] = 1
    return counts
