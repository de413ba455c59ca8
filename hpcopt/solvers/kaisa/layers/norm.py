"""Scale and bias of normalisations: the Fisher block of each channel's pair (scale, bias), exactly.

A sample's own gradient is ``(sum of g xhat, sum of g)`` over the positions of a channel, so no Kronecker factors are
needed: one factor of 2 x 2 blocks does (1 x 1 without a bias), on W = (scale, bias) interleaved.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer, Options, Sums
from hpcopt.solvers.kaisa.products import at_once

PORTION_VALUES = 1 << 18  # are looked at together, to stay in the cache

Norm = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class ScaleShift(Layer):
    """LayerNorm, GroupNorm and BatchNorm; a has no values."""

    def __init__(self, name: str, module: Norm, options: Options) -> None:
        assert module.weight is not None
        self._setup(name, module.weight, module.bias, options)
        self._module = module
        self.channels = module.weight.numel()
        self.outputs, self.inputs = self.channels * len(self.parameters()), 1
        self.a = FactorShape(1, 0, 1)
        self.g = FactorShape(1, self.channels, 1 if self.bias is None else 2)

    def record(self, sums: Sums, x: Tensor, gradient: Tensor) -> None:
        x, g = x.detach().to(self.dtype), gradient.detach().to(self.dtype)
        rows = self._layer_rows(x, g) if isinstance(self._module, nn.LayerNorm) else self._channel_rows(x, g)
        sums.rows += len(rows[0])
        pairs = torch.stack(rows[: len(self.parameters())], 2)  # samples, channels, scale and bias
        weight = x.shape[self.options.batch_dim if x.ndim > 2 else 0] / max(1, len(rows[0]))
        self._add_gradient_rows(sums, pairs.flatten(1), weight)

    def matrix(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([v.flatten() for v in values], 1).view(1, -1, 1)

    def set_gradient(self, matrix: Tensor, scale: float = 1.0) -> None:
        for p, values in zip(self.parameters(), matrix.view(self.channels, -1).unbind(1), strict=True):
            assert p.grad is not None
            torch.mul(values.view_as(p), scale, out=p.grad)

    @property
    def numel(self) -> int:
        return self.g.features

    def _layer_rows(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's sums of g xhat and of g over its positions, shape (samples, channels)."""
        module = self._module
        assert isinstance(module, nn.LayerNorm)
        dims = len(module.normalized_shape)
        if x.ndim - dims > 1:
            x, g = x.movedim(self.options.batch_dim, 0), g.movedim(self.options.batch_dim, 0)
        x, g = x[:: self.options.batch_every], g[:: self.options.batch_every]
        scaled = g * F.layer_norm(x, module.normalized_shape, eps=module.eps)
        total, plain = (t.reshape(len(t), -1, self.channels).sum(1) for t in (scaled, g))
        return total, plain

    def _channel_rows(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The same where a channel's positions share their mean and variance."""
        module, shape, every = self._module, x.shape[:2], self.options.batch_every
        x, g = x.reshape(*shape, -1), g.reshape(*shape, -1)
        if isinstance(module, nn.GroupNorm):
            of_group = self.channels // module.num_groups
            mean = x.reshape(len(x), module.num_groups, -1).mean(2).repeat_interleave(of_group, 1)
            crossed, variance = _centred_moments(x, g, mean)
            variance = variance.view(len(x), -1, of_group).mean(2).repeat_interleave(of_group, 1)
        else:
            assert not isinstance(module, nn.LayerNorm)
            kept_mean, kept_variance = module.running_mean, module.running_var
            if module.training or kept_mean is None or kept_variance is None:
                crossed, variance = _centred_moments(x, g, _channel_means(x).expand(shape))
                variance = variance.mean(0)
            else:
                crossed, _ = _centred_moments(x, g, kept_mean.to(x.dtype).expand(shape))
                variance = kept_variance.to(x.dtype)
        return (crossed / (variance + module.eps).sqrt())[::every], g.sum(2)[::every]


def _channel_means(x: Tensor) -> Tensor:
    """Over samples and positions of x, shape (samples, channels, positions); quicker than of both at once."""
    return x.sum(2).sum(0) / (len(x) * x.shape[2])


def _centred_moments(x: Tensor, g: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over positions of g (x - mean), and the means of (x - mean)^2.

    Args:
        x, g: shape (samples, channels, positions).
        mean: shape (samples, channels), as are the results.
    """
    crossed, squared = x.new_empty(mean.shape), x.new_empty(mean.shape)
    portion = at_once(x, PORTION_VALUES, x[0].numel())
    for first in range(0, len(x), portion):
        part = slice(first, first + portion)
        centred = x[part] - mean[part].unsqueeze(2)
        crossed[part] = torch.linalg.vecdot(g[part], centred)
        squared[part] = torch.linalg.vecdot(centred, centred)
    return crossed, squared / x.shape[2]
