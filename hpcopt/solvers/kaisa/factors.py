"""Inverting factors: in main memory one after the other, each in the cache while it is worked on; on a GPU all of one
size together, where a small matrix costs a launch and every question whether it went well makes the host wait.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.pinned import numbers, seen, sent
from hpcopt.solvers.kaisa import root, symmetric
from hpcopt.solvers.kaisa.layers.layer import Layer

MORE_DAMPING = 10.0
LARGE = 640  # rows from which a matrix in main memory is inverted by halves
ATTEMPTS = 3  # in the factors' own precision; then in float64
TOGETHER_BYTES = 1 << 28  # of matrices that are unpacked at once on a GPU


@dataclass
class Failures:
    """How often a factor did not invert as it was."""

    more_damping: int = 0
    float64: int = 0


@dataclass(frozen=True)
class Work:
    """A layer whose factors are to be inverted.

    Attributes:
        a, g: packed, shape (matrices, packed length).
        out: flat; what the method keeps goes there.
    """

    layer: Layer
    a: Tensor
    g: Tensor
    damping: float
    out: Tensor


@dataclass(frozen=True)
class Factor:
    """One factor of a layer.

    Attributes:
        packed: matrices of ``size`` rows, shape (matrices, packed length).
        damping: to be added to their diagonals.
        out: where what becomes of each goes, (matrices, ...).
    """

    packed: Tensor
    size: int
    damping: float
    out: Tensor


def factored_dampings(work: Sequence[Work], relative: bool = False) -> list[tuple[float, float]]:
    """For each layer what is added to the diagonals of A and of G; ``relative``: dampings are in units of the layers'
    own mean curvature.
    """
    looked_at = [w for w in work if relative or w.layer.a.blocks]
    sides = ((packed, shape) for w in looked_at for packed, shape in ((w.a, w.layer.a), (w.g, w.layer.g)))
    pairs = [(packed, shape) for packed, shape in sides if shape.blocks]
    totals = numbers([symmetric.trace(packed, shape.size) for packed, shape in pairs])
    means = iter([total / (shape.matrices * shape.size) for total, (_, shape) in zip(totals, pairs, strict=True)])
    found = []
    for w in work:
        mean_a = next(means) if w.layer.a.blocks else 1.0
        mean_g = next(means) if relative or w.layer.a.blocks else 1.0
        damping = w.damping * (mean_a * mean_g or 1.0) if relative else w.damping  # there may be no curvature at all
        found.append(_shared(damping, mean_a, mean_g) if w.layer.a.blocks else (0.0, damping))
    return found


def invert_factors(factors: Sequence[Factor], failures: Failures) -> None:
    """Fill every ``out``, packed as the factor, with the inverses of ``packed + damping``."""
    for group in together(factors):
        if len(group) == 1:
            invert_packed(group[0], failures)
        else:
            _invert_group(group, failures)


def decompose_factors(factors: Sequence[Factor], failures: Failures) -> None:
    """Fill every ``out``, (matrices, size + 1, size), with eigenvectors, in columns, and eigenvalues under them."""
    for group in together(factors):
        values, vectors = eigh(unpacked(group), failures)
        counts = [len(factor.packed) for factor in group]
        for factor, d, q in zip(group, torch.split(values, counts), torch.split(vectors, counts), strict=True):
            factor.out[:, :-1].copy_(q)
            factor.out[:, -1].copy_(d.clamp(min=0))


def invert_packed(factor: Factor, failures: Failures) -> None:
    """Invert one factor; where it is not positive definite in its own precision, more damping is tried, then float64,
    and counted.
    """
    out, damping = factor.out, factor.damping
    full = unpacked([factor])
    diagonal = full.diagonal(dim1=1, dim2=2)
    diagonal += damping
    if factor.size == 1:
        out.copy_(full[:, 0].reciprocal())
        return
    for _ in range(ATTEMPTS):
        if _invert(full, out):
            return
        failures.more_damping += 1
        diagonal += damping * (MORE_DAMPING - 1)
        damping *= MORE_DAMPING
    values, vectors = eigh(full.double(), failures)
    inverse = (vectors / values.clamp(min=damping).unsqueeze(1)) @ vectors.transpose(1, 2)
    symmetric.pack(inverse.to(full.dtype), out)


def eigh(full: Tensor, failures: Failures) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, in float64 if that is what it takes."""
    try:
        values, vectors = torch.linalg.eigh(full)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        failures.float64 += 1
        values, vectors = torch.linalg.eigh(full.double())
    return values, vectors


def together(factors: Sequence[Factor]) -> Iterator[list[Factor]]:
    """Factors to be worked on at once."""
    groups: dict[object, list[Factor]] = {}
    for number, factor in enumerate(factors):
        alike = factor.packed.device, factor.packed.dtype, factor.size
        groups.setdefault(number if factor.packed.is_cpu else alike, []).append(factor)
    for group in groups.values():
        most = max(1, TOGETHER_BYTES // (4 * group[0].size ** 2 * max(len(factor.packed) for factor in group)))
        yield from (group[i : i + most] for i in range(0, len(group), most))


def _invert_group(group: Sequence[Factor], failures: Failures) -> None:
    """Factors of one size, with one question to the device; those that fail are tried again one by one."""
    full = unpacked(group)
    counts = [len(factor.packed) for factor in group]
    dampings = torch.tensor([factor.damping for factor in group], dtype=full.dtype)
    full.diagonal(dim1=1, dim2=2).add_(sent(dampings.repeat_interleave(torch.tensor(counts)), full.device)[:, None])
    if group[0].size == 1:
        for factor, inverse in zip(group, torch.split(full[:, 0].reciprocal(), counts), strict=True):
            factor.out.copy_(inverse)
        return
    lower, info = torch.linalg.cholesky_ex(full)
    inverses, failed = (torch.split(x, counts) for x in (torch.cholesky_inverse(lower), seen(info)))
    for factor, inverse, bad in zip(group, inverses, failed, strict=True):
        if bad.any():
            invert_packed(factor, failures)
        else:
            symmetric.pack(inverse, factor.out)


def _invert(full: Tensor, out: Tensor) -> bool:
    """Fill out with the packed inverses if all matrices are positive definite; give whether they are."""
    if full.shape[1] >= LARGE and full.is_cpu:
        return all(root.invert(matrix, packed) for matrix, packed in zip(full, out, strict=True))
    lower, info = torch.linalg.cholesky_ex(full)
    if bool(info.any()):
        return False
    symmetric.pack(torch.cholesky_inverse(lower), out)
    return True


def unpacked(group: Sequence[Factor]) -> Tensor:
    """All matrices of factors of one size, shape (matrices, size, size), of single precision at least."""
    packed = group[0].packed if len(group) == 1 else torch.cat([factor.packed for factor in group])
    return symmetric.unpack(packed, group[0].size, torch.promote_types(packed.dtype, torch.float32))


def _shared(damping: float, mean_a: float, mean_g: float) -> tuple[float, float]:
    """A damping shared out between A and G, by their mean eigenvalues."""
    pi = (mean_a / mean_g) ** 0.5 if mean_a > 0 and mean_g > 0 else 1.0
    return damping**0.5 * pi, damping**0.5 / pi
