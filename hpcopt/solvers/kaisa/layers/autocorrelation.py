"""The covariance of all overlapping patches of an image, without forming a patch.

The entry of patch places i and j (kernel offsets) sums ``x[q] x[q + j - i]`` over all places q that place i visits. But
for a border, those sums depend on the difference j - i alone: for a 3x3 kernel 13 shifts of the image against itself
replace 45 products. The sums over all shifts are what a convolution calls the gradient of its weight, of an image
convolved with itself, and are computed as one. What place i does not visit, lines along the border, is then taken off.
Which entry takes which sums depends on shapes alone and is worked out once.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby, product
from typing import NamedTuple

import torch
from torch import Tensor

from hpcopt.solvers.kaisa.products import NARROW, at_once, narrow_is_quick

PORTION_BYTES = 1 << 19  # of images are looked at together: fresh memory for all would cost more than the arithmetic


class Geometry(NamedTuple):
    """A convolution of stride 1: each pair is (vertical, horizontal) but for the pads, (before, after)."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    pad_h: tuple[int, int]
    pad_w: tuple[int, int]

    @property
    def outputs(self) -> tuple[int, int]:
        """Output positions."""
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        return self.size[0] + sum(self.pad_h) - reach[0], self.size[1] + sum(self.pad_w) - reach[1]

    def missed(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each place of the kernel, the rows and columns of the image that it never visits."""
        by_axis = []
        for size, kernel, dilation, pad, outputs in zip(*self[:3], (self.pad_h, self.pad_w), self.outputs, strict=True):
            starts = [place * dilation - pad[0] for place in range(kernel)]
            by_axis.append([tuple(i for i in range(size) if not s <= i < s + outputs) for s in starts])
        rows, columns = by_axis
        return list(product(rows, columns))


class Term(NamedTuple):
    """A sum of x[q] x[q + shift]^T, over one row, one column, or one place."""

    shift: tuple[int, int]
    row: int | None
    column: int | None

    @property
    def line(self) -> tuple[int, int, int, int]:
        """Axis, place on it, place of the partner, and the shift along the line."""
        (down, across), row, column = self
        if row is not None:
            return 2, row, row + down, across
        assert column is not None
        return 3, column, column + across, down


class Line(NamedTuple):
    """Terms over a row (axis 2) or column ``at``, whose partners are on the line ``other``, shifted along it."""

    axis: int
    at: int
    other: int
    alongs: list[int]


def patch_covariance(x: Tensor, geometry: Geometry, narrow: bool = False) -> Tensor:
    """Give the Gram matrix of the patches of x, in the order of a flattened convolution weight.

    Args:
        x: images, shape (samples, channels, *geometry.size).
        geometry: of the convolution.
        narrow: where that is quicker, round x and the sums over all places to bfloat16; in between is float32.

    Returns:
        Shape (channels * kernel values, channels * kernel values).
    """
    channels, places = x.shape[1], geometry.kernel[0] * geometry.kernel[1]
    lines, corners, coefficients, entries = _recipe(geometry, x.device)
    sums = torch.cat([_over_all_places(x, geometry, narrow), *_along_lines(x, lines), *_in_corners(x, corners)])
    upper = (coefficients.to(x) @ sums.flatten(1)).view(-1, channels, channels)
    blocks = torch.cat([upper, upper.transpose(1, 2)])[entries].view(places, places, channels, channels)
    return blocks.permute(2, 0, 3, 1).reshape(channels * places, channels * places)


def _over_all_places(x: Tensor, geometry: Geometry, narrow: bool) -> Tensor:
    """Sums of ``x[q] x[q + shift]^T`` for the shifts down by 0 to k - 1 steps of the dilation, and across by 1 - k to
    k - 1, row by row; what lies outside the image is zero. Shape (shifts, channels, channels).
    """
    channels, (places_h, places_w), dilation = x.shape[1], geometry.kernel, geometry.dilation
    below, across = (places_h - 1) * dilation[0], (places_w - 1) * dilation[1]
    narrow = narrow and x.dtype == torch.float32 and narrow_is_quick(x.device)
    dtype = NARROW if narrow else x.dtype
    weight = x.new_empty(1, dtype=dtype).expand(channels, channels, places_h, 2 * places_w - 1)
    sums = x.new_zeros(weight.shape)
    portion = at_once(x, PORTION_BYTES // dtype.itemsize, x[0].numel())
    image = x.new_zeros(min(portion, len(x)), channels, x.shape[2] + below, x.shape[3], dtype=dtype)
    rest = ((1, 1), (0, across), dilation, False, (0, 0), 1, (False, True, False))
    for part in torch.split(x, portion):
        image[: len(part), :, : x.shape[2]] = part  # the rows below it stay zero
        sums += torch.ops.aten.convolution_backward(part.to(dtype), image[: len(part)], weight, None, *rest)[1]
    return sums.permute(2, 3, 0, 1).flatten(0, 1)


def _along_lines(x: Tensor, lines: Sequence[Line]) -> Iterator[Tensor]:
    """The sums of each line's terms, shape (terms, channels, channels)."""
    samples, channels = x.shape[:2]
    reach = max((abs(along) for line in lines for along in line.alongs), default=0)
    kept: dict[tuple[int, int], Tensor] = {}

    def line(axis: int, at: int) -> Tensor:
        """A row (axis 2) or column of all samples one after the other, with so many zeros between them that shifting
        all meets no other sample; shape (channels, places).
        """
        if (axis, at) not in kept:
            values = x.select(axis, at).transpose(0, 1)
            places = samples * (values.shape[2] + reach)
            flat = kept[axis, at] = x.new_zeros(channels, places + 2 * reach)
            flat[:, reach : reach + places].view(channels, samples, -1)[:, :, : values.shape[2]] = values
        return kept[axis, at]

    for axis, at, other, alongs in lines:
        here, there = line(axis, at), line(axis, other)
        places = here.shape[1] - 2 * reach
        here = here[:, reach : reach + places]
        yield torch.stack([here @ there[:, reach + along : reach + along + places].T for along in alongs])


def _in_corners(x: Tensor, corners: Sequence[Term]) -> Iterator[Tensor]:
    """The sums of terms at one place, shape (terms, channels, channels)."""
    if corners:
        at = [(c.row or 0, c.column or 0) for c in corners]
        here = torch.stack([x[:, :, row, column] for row, column in at])
        partners = [(row + c.shift[0], column + c.shift[1]) for (row, column), c in zip(at, corners, strict=True)]
        there = torch.stack([x[:, :, row, column] for row, column in partners])
        yield torch.bmm(here.transpose(1, 2), there)


def patch_sums(x: Tensor, geometry: Geometry) -> Tensor:
    """Give the sum of the patches of x, shape (channels * kernel values,)."""
    image = x.sum(0)
    keep = [
        (
            [r for r in range(geometry.size[0]) if r not in rows],
            [c for c in range(geometry.size[1]) if c not in columns],
        )
        for rows, columns in geometry.missed()
    ]
    return torch.stack([image[:, rows][:, :, columns].sum((1, 2)) for rows, columns in keep], 1).flatten()


@lru_cache
def _recipe(geometry: Geometry, device: torch.device) -> tuple[list[Line], list[Term], Tensor, Tensor]:
    """The terms along the border: lines, then corners; for each pair of places (i, j), shift j - i not before zero, how
    often it takes each sum, shape (pairs, shifts + terms); and for each (i, j), row by row, its pair, or that of (j, i)
    counted on.
    """
    (places_h, places_w), missed = geometry.kernel, geometry.missed()
    places = list(product(range(places_h), range(places_w)))
    shifts = places_h * (2 * places_w - 1)
    pairs: dict[tuple[int, int], int] = {}
    taken: list[tuple[int, int | Term, int]] = []  # pair, sum, sign
    for (i, here), (j, there) in product(enumerate(places), repeat=2):
        steps = there[0] - here[0], there[1] - here[1]
        if steps < (0, 0):
            continue
        pair = pairs.setdefault((i, j), len(pairs))
        taken.append((pair, steps[0] * (2 * places_w - 1) + steps[1] + places_w - 1, 1))
        shift, (rows, columns) = (steps[0] * geometry.dilation[0], steps[1] * geometry.dilation[1]), missed[i]
        signed = [(Term(shift, row, None), -1) for row in rows]
        signed += [(Term(shift, None, column), -1) for column in columns]
        signed += [(Term(shift, row, column), 1) for row, column in product(rows, columns)]
        taken += [(pair, term, sign) for term, sign in signed if _inside(term, geometry.size)]
    terms = {term for _, term, _ in taken if isinstance(term, Term)}
    corners = sorted(term for term in terms if None not in (term.row, term.column))
    along = sorted((term.line, term) for term in terms if None in (term.row, term.column))
    lines = [
        Line(axis, at, other, [line[3] for line, _ in group])
        for (axis, at, other), group in groupby(along, key=lambda item: item[0][:3])
    ]
    order = {term: shifts + n for n, term in enumerate([*(term for _, term in along), *corners])}
    coefficients = torch.zeros(len(pairs), shifts + len(order))
    for pair, what, sign in taken:
        coefficients[pair, order[what] if isinstance(what, Term) else what] += sign
    both_ways = product(range(len(places)), repeat=2)
    entries = [pairs[i, j] if (i, j) in pairs else len(pairs) + pairs[j, i] for i, j in both_ways]
    return lines, corners, coefficients.to(device), torch.tensor(entries).to(device)


def _inside(term: Term, size: tuple[int, int]) -> bool:
    """Whether any place of the image meets another of it."""
    return all(
        abs(shift) < n if place is None else 0 <= place + shift < n
        for place, shift, n in zip((term.row, term.column), term.shift, size, strict=True)
    )
