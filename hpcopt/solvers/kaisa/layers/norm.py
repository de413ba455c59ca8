"""Scale and bias of normalisations: the Fisher block of each channel's pair (scale, bias), exactly.

A sample's own gradient is ``(sum of g xhat, sum of g)`` over the positions of a channel, so no Kronecker factors are
needed: one factor of 2 x 2 blocks does (1 x 1 without a bias), on W = (scale, bias) interleaved.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer, Options, Sums

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
        pairs = [g * self._normalised(x)] if self.bias is None else [g * self._normalised(x), g]
        rows = torch.stack([self._per_sample(part) for part in pairs], 2)  # samples, channels, 2
        sums.rows += len(rows)
        self.g.add_rows(sums.g, rows.flatten(1).unsqueeze(0))

    def gradient(self) -> Tensor:
        return torch.stack([p.grad.detach().flatten() for p in self.parameters() if p.grad is not None], 1).view(
            1, -1, 1
        )

    def set_gradient(self, matrix: Tensor) -> None:
        for p, values in zip(self.parameters(), matrix.view(self.channels, -1).unbind(1), strict=True):
            assert p.grad is not None
            p.grad.copy_(values.view_as(p))

    @property
    def numel(self) -> int:
        return self.g.features

    def _normalised(self, x: Tensor) -> Tensor:
        module = self._module
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(x, module.normalized_shape, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, eps=module.eps)
        mean, variance = module.running_mean, module.running_var
        if module.training or mean is None or variance is None:
            return F.batch_norm(x, None, None, training=True, eps=module.eps)
        return F.batch_norm(x, mean.to(x.dtype), variance.to(x.dtype), eps=module.eps)

    def _per_sample(self, x: Tensor) -> Tensor:
        """Sum over positions: shape (samples, channels)."""
        if isinstance(self._module, nn.LayerNorm):
            dims = len(self._module.normalized_shape)
            x = x.flatten(x.ndim - dims)
            return x.movedim(self.options.batch_dim, 0).flatten(1, -2).sum(1) if x.ndim > 2 else x
        return x.flatten(2).sum(2) if x.ndim > 2 else x
