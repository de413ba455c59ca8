"""The covariance of all overlapping patches of an image, without forming a patch.

The entry of patch places i and j (kernel offsets) sums ``x[q] x[q + j - i]`` over all places q that place i visits. But
for a border, those sums depend on the difference j - i alone: for a 3x3 kernel 13 products of the image with itself
shifted replace 45, and each is one matrix product over a flat image whose rows and samples are set apart by zeros, so
that a shift never meets the next row. What place i does not visit, strips along the border, is then taken off.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor


def patch_covariance(
    x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...], pad_h: tuple[int, int], pad_w: tuple[int, int]
) -> tuple[Tensor, Tensor, int]:
    """Give the Gram matrix of the patches of x, their sum, and their number.

    Args:
        x: images, shape (samples, channels, height, width).
        kernel, dilation: height and width.
        pad_h, pad_w: zeros before and after.

    Returns:
        Shape (channels * kernel values, same), in the order of a flattened convolution weight; shape (channels *
        kernel values,); samples * output positions.
    """
    samples, channels, height, width = x.shape
    rows = _missed(height, kernel[0], dilation[0], pad_h)
    columns = _missed(width, kernel[1], dilation[1], pad_w)
    image = _Image(x, (kernel[0] - 1) * dilation[0], (kernel[1] - 1) * dilation[1])
    places = list(product(range(kernel[0]), range(kernel[1])))
    out = x.new_empty(channels, len(places), channels, len(places))
    for (i, (ri, ci)), (j, (rj, cj)) in product(enumerate(places), repeat=2):
        if j < i:
            continue
        shift = ((rj - ri) * dilation[0], (cj - ci) * dilation[1])
        block = image.visited(shift, rows[ri], columns[ci])
        out[:, i, :, j] = block
        if j > i:
            out[:, j, :, i] = block.T
    n = channels * len(places)
    sums = torch.stack([image.total(rows[r], columns[c]) for r, c in places], 1).flatten()
    positions = (
        samples * _outputs(height, kernel[0], dilation[0], pad_h) * _outputs(width, kernel[1], dilation[1], pad_w)
    )
    return out.view(n, n), sums, positions


class _Image:
    """Samples laid out flat, one row a channel, with zeros between rows and samples."""

    def __init__(self, x: Tensor, gap_h: int, gap_w: int) -> None:
        samples, channels, self.height, self.width = x.shape
        self.padded = x.new_zeros(channels, samples, self.height + gap_h, self.width + gap_w)
        self.padded[:, :, : self.height, : self.width] = x.transpose(0, 1)
        self.x = self.padded[:, :, : self.height, : self.width]
        self._flat = self.padded.flatten(1)
        self._products: dict[tuple[object, ...], Tensor | None] = {}

    def visited(self, shift: tuple[int, int], rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
        """Sum over the places outside of ``rows`` and ``columns`` of x[place] x[place + shift]^T."""
        total = self._everywhere(shift)
        taken_off = [(self._strip(shift, row, None), -1) for row in rows]
        taken_off += [(self._strip(shift, None, column), -1) for column in columns]
        taken_off += [(self._strip(shift, row, column), 1) for row, column in product(rows, columns)]
        parts = [(part, sign) for part, sign in taken_off if part is not None]
        if parts:
            total = total.clone()
            for part, sign in parts:
                total.add_(part, alpha=sign)
        return total

    def total(self, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
        """Sum of x over the places outside of ``rows`` and ``columns``, shape (channels,)."""
        keep_r = [r for r in range(self.height) if r not in rows]
        keep_c = [c for c in range(self.width) if c not in columns]
        return self._sample_sum()[:, keep_r][:, :, keep_c].sum((1, 2))

    def _sample_sum(self) -> Tensor:
        key = ("sum",)
        if key not in self._products:
            self._products[key] = self.x.sum(1)
        result = self._products[key]
        assert result is not None
        return result

    def _everywhere(self, shift: tuple[int, int]) -> Tensor:
        if shift not in self._products:
            offset = shift[0] * self.padded.shape[3] + shift[1]
            if offset < 0:
                return self._everywhere((-shift[0], -shift[1])).T
            length = self._flat.shape[1] - offset
            self._products[shift] = self._flat[:, :length] @ self._flat[:, offset:].T
        result = self._products[shift]
        assert result is not None
        return result

    def _strip(self, shift: tuple[int, int], row: int | None, column: int | None) -> Tensor | None:
        """The sum over one row, one column or one place alone; None where the shifted strip is outside."""
        key = (shift, row, column)
        if key not in self._products:
            here_r, there_r = _overlap(row, shift[0], self.height)
            here_c, there_c = _overlap(column, shift[1], self.width)
            a, b = self.x[:, :, here_r, here_c], self.x[:, :, there_r, there_c]
            self._products[key] = a.flatten(1) @ b.flatten(1).T if a.numel() else None
        return self._products[key]


def _overlap(place: int | None, shift: int, size: int) -> tuple[slice, slice]:
    """Where (one place, or all) and where shifted, as far as both are inside."""
    first, last = (0, size) if place is None else (place, place + 1)
    first, last = max(first, -shift), min(last, size - shift)
    if first >= last:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(first + shift, last + shift)


def _outputs(size: int, kernel: int, dilation: int, pad: tuple[int, int]) -> int:
    return size + sum(pad) - (kernel - 1) * dilation


@lru_cache
def _missed(size: int, kernel: int, dilation: int, pad: tuple[int, int]) -> list[tuple[int, ...]]:
    """For each place of the kernel, which of ``size`` it never visits."""

    def missed(place: int) -> Iterator[int]:
        first = place * dilation - pad[0]
        visited = range(first, first + _outputs(size, kernel, dilation, pad))
        return (i for i in range(size) if i not in visited)

    return [tuple(missed(place)) for place in range(kernel)]
