"""Convolutions of 1, 2 and 3 dimensions; a row is one output position's patch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.layers.autocorrelation import Geometry, patch_covariance, patch_sums
from hpcopt.solvers.kaisa.layers.layer import Layer, Options, Sums
from hpcopt.solvers.kaisa.products import at_once

FEW_CHANNELS = 64  # whose products a sample at a time are quicker than bringing all samples into line
CHUNK_VALUES = 1 << 18  # patches are formed a few samples at a time, to stay in the cache


class Conv(Layer):
    """Any stride, dilation, padding and number of groups; each group is a matrix of the batch.

    Patches overlap, so for stride 1 in two dimensions their covariance is had from products of the shifted input
    without forming them (``autocorrelation.py``); otherwise they are formed in portions.
    """

    def __init__(self, name: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, options: Options) -> None:
        super().__init__(name, module, options, batch=module.groups)
        self.stride, self.dilation, self.kernel = module.stride, module.dilation, module.kernel_size
        self.mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        self.padding = [  # (before, after) of every dimension
            _both_sides(module.padding, i, dilation, kernel)
            for i, (dilation, kernel) in enumerate(zip(self.dilation, self.kernel, strict=True))
        ]

    def record_input(self, sums: Sums, x: Tensor) -> None:
        x = self._batched(x)[:: self.options.batch_every].to(self.dtype)
        if self._by_autocorrelation(x):
            self._add_autocorrelation(sums, x)
            return
        x, every = self._padded(x), self.options.position_every
        values = self.inputs * self.batch * math.prod(self._positions(x, every))
        for part in torch.split(x, at_once(x, CHUNK_VALUES, values)):
            self._add_input_rows(sums, self._patches(part, every))

    def record_gradient(self, sums: Sums, gradient: Tensor) -> None:
        gradient = self._batched(gradient)
        total = gradient.numel()
        every = (slice(None, None, self.options.position_every),) * len(self.kernel)
        g = gradient[(slice(None, None, self.options.batch_every), slice(None), *every)]
        weight = total / max(1, g.numel())
        if self.batch == self.g.blocks == 1 and 1 < self.outputs <= FEW_CHANNELS:
            of_samples = g.reshape(len(g), self.outputs, -1).to(self.dtype)  # the gradient is read as it lies
            symmetric.add_matrix(sums.g, weight * torch.bmm(of_samples, of_samples.transpose(1, 2)).sum(0, True))
            return
        features = g.reshape(len(g), self.batch, self.outputs, -1).permute(1, 2, 0, 3).to(self.dtype)
        self._add_gradient_rows(sums, features.flatten(2).transpose(1, 2), weight)

    def rows(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """All rows of an input and of a gradient, shape (groups, samples * positions, features of a group)."""
        g = gradient.reshape(len(gradient), self.batch, self.outputs, -1).permute(1, 0, 3, 2).flatten(1, 2)
        return self._patches(self._padded(x), 1), g

    def _by_autocorrelation(self, x: Tensor) -> bool:
        return (
            len(self.kernel) == 2
            and max(self.kernel) > 1
            and set(self.stride) == {1}
            and self.options.position_every == 1
            and self.batch == 1
            and self.a.blocks == 1
            and self.a.size > 1
            and min(x.shape[2:]) >= 2 * max(self.kernel)
        )

    def _add_autocorrelation(self, sums: Sums, x: Tensor) -> None:
        pad_h, pad_w = self.padding
        if self.mode != "constant":
            x, pad_h, pad_w = self._padded(x), (0, 0), (0, 0)
        size, kernel, dilation = (x.shape[2], x.shape[3]), self.kernel, self.dilation
        geometry = Geometry(size, (kernel[0], kernel[1]), (dilation[0], dilation[1]), pad_h, pad_w)
        matrix = patch_covariance(x, geometry, self.options.narrow)
        positions = len(x) * geometry.outputs[0] * geometry.outputs[1]
        if self.bias is not None:
            column_sums = patch_sums(x, geometry)
            border = torch.cat([column_sums, column_sums.new_full((1,), positions)])
            matrix = torch.cat([torch.cat([matrix, column_sums[None]]), border[:, None]], 1)
        symmetric.add_matrix(sums.a, matrix[None])
        sums.rows += positions

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.ndim == len(self.kernel) + 2 else x.unsqueeze(0)

    def _padded(self, x: Tensor) -> Tensor:
        sides = [side for pair in reversed(self.padding) for side in pair]
        return F.pad(x, sides, mode=self.mode) if any(sides) else x

    def _positions(self, x: Tensor, every: int) -> list[int]:
        """Of the patches of a padded input, in each dimension."""
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        return [(n - r - 1) // (s * every) + 1 for n, r, s in zip(x.shape[2:], reach, self.stride, strict=True)]

    def _patches(self, x: Tensor, every: int) -> Tensor:
        """Patches of a padded input, shape (groups, samples * positions, channels of a group * kernel values)."""
        step = [s * every for s in self.stride]
        positions = self._positions(x, every)
        x = x.contiguous()
        strides = x.stride()[2:]
        windows = x.as_strided(
            (*x.shape[:2], *positions, *self.kernel),
            (
                *x.stride()[:2],
                *(s * t for s, t in zip(strides, step, strict=True)),
                *(s * d for s, d in zip(strides, self.dilation, strict=True)),
            ),
            x.storage_offset(),
        )
        n = len(self.kernel)
        group = (len(x), self.batch, x.shape[1] // self.batch)
        grouped = windows.as_strided(  # samples, groups, channels of a group, positions, kernel
            (*group, *windows.shape[2:]), (windows.stride(0), group[2] * windows.stride(1), *windows.stride()[1:])
        )
        order = (1, 2, *range(3 + n, 3 + 2 * n), 0, *range(3, 3 + n))  # along positions memory is read in order
        return grouped.permute(order).reshape(self.batch, self.inputs, -1).transpose(1, 2)


def _both_sides(padding: str | tuple[int, ...], i: int, dilation: int, kernel: int) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if padding == "same":
        total = dilation * (kernel - 1)
        return total // 2, total - total // 2
    return int(padding[i]), int(padding[i])
