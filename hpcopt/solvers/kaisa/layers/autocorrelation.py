"""The covariance of all overlapping patches of an image, without forming a patch.

The entry of patch places i and j (kernel offsets) sums ``x[q] x[q + j - i]`` over all places q that place i visits. But
for a border, those sums depend on the difference j - i alone: for a 3x3 kernel 13 products of the image with itself
shifted replace 45, and each is one matrix product over a flat image whose rows and samples are set apart by zeros, so
that a shift never meets the next row. What place i does not visit, strips along the border, is then taken off. Which
products those are, and which entry takes which, depends on shapes alone and is worked out once.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor


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
    """A sum of x[q] x[q + shift]^T, over all q, or one row, or one column, or one place."""

    shift: tuple[int, int]
    row: int | None
    column: int | None


def patch_covariance(x: Tensor, geometry: Geometry) -> Tensor:
    """Give the Gram matrix of the patches of x, in the order of a flattened convolution weight.

    Args:
        x: images, shape (samples, channels, *geometry.size).
        geometry: of the convolution.

    Returns:
        Shape (channels * kernel values, channels * kernel values).
    """
    samples, channels, height, width = x.shape
    terms, coefficients = _recipe(geometry)
    gaps = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
    padded = x.new_zeros(channels, samples, height + gaps[0], width + gaps[1])
    image = padded[:, :, :height, :width]
    image.copy_(x.transpose(0, 1))
    flat = padded.flatten(1)
    products = x.new_empty(2, len(terms), channels, channels)
    for out, (shift, row, column) in zip(products[0], terms, strict=True):
        if row is None and column is None:
            offset = shift[0] * padded.shape[3] + shift[1]
            torch.mm(flat[:, : flat.shape[1] - offset], flat[:, offset:].T, out=out)
        else:
            (here_r, there_r), (here_c, there_c) = _overlap(row, shift[0], height), _overlap(column, shift[1], width)
            torch.mm(image[:, :, here_r, here_c].flatten(1), image[:, :, there_r, there_c].flatten(1).T, out=out)
    products[1] = products[0].transpose(1, 2)
    places = geometry.kernel[0] * geometry.kernel[1]
    blocks = (coefficients.to(x.dtype) @ products.view(2 * len(terms), -1)).view(places, places, channels, channels)
    return blocks.permute(2, 0, 3, 1).reshape(channels * places, channels * places)


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
def _recipe(geometry: Geometry) -> tuple[list[Term], Tensor]:
    """The terms, and for each entry (i, j) of the places how often it takes each term, then each term transposed."""
    places = list(product(*(range(k) for k in geometry.kernel)))
    index: dict[Term, int] = {}
    taken: list[tuple[int, int, int]] = []  # entry (i, j) with j - i not before zero, term, sign
    for (i, here), (j, there) in product(enumerate(places), repeat=2):
        shift = tuple((b - a) * d for a, b, d in zip(here, there, geometry.dilation, strict=True))
        if shift < (0, 0):
            continue
        rows, columns = geometry.missed()[i]
        signed = [(Term((shift[0], shift[1]), None, None), 1)]
        signed += [(Term((shift[0], shift[1]), row, None), -1) for row in rows]
        signed += [(Term((shift[0], shift[1]), None, column), -1) for column in columns]
        signed += [(Term((shift[0], shift[1]), row, column), 1) for row, column in product(rows, columns)]
        for term, sign in signed:
            inside = (_overlap(term.row, shift[0], geometry.size[0]), _overlap(term.column, shift[1], geometry.size[1]))
            if all(here_to.stop > here_to.start for here_to, _ in inside):
                taken.append((i * len(places) + j, index.setdefault(term, len(index)), sign))
    coefficients = torch.zeros(len(places) ** 2, 2 * len(index))
    for entry, term_index, sign in taken:
        i, j = divmod(entry, len(places))
        coefficients[entry, term_index] += sign
        if i != j:
            coefficients[j * len(places) + i, len(index) + term_index] += sign
    return list(index), coefficients


def _overlap(place: int | None, shift: int, size: int) -> tuple[slice, slice]:
    """Where (one place, or all) and where shifted, as far as both are inside."""
    first, last = (0, size) if place is None else (place, place + 1)
    first, last = max(first, -shift), min(last, size - shift)
    if first >= last:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(first + shift, last + shift)
