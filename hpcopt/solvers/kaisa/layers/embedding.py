"""Embeddings: a linear map of one-hot inputs, so that A is diagonal and holds each word's frequency.

Where the output layer multiplies with the same weight, it tells more, and its rows are taken instead: those of the
transposed map, whose inputs belong to G and whose gradients, the diagonal of their covariance, to A.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcopt.solvers.kaisa.layers.layer import FactorShape, Layer, Options, Sums

AS_OUTPUT = 1  # the part of an output layer, where that of an embedding is 0


class Embedding(Layer):
    """W is the transposed weight, shape (1, dimension, words). The padding word has no row.

    Attributes:
        is_output: whether an output layer was seen to multiply with the weight.
    """

    def __init__(self, name: str, module: nn.Embedding, options: Options) -> None:
        assert isinstance(module.weight, nn.Parameter)
        self._setup(name, module.weight, None, options)
        self.outputs, self.inputs = module.embedding_dim, module.num_embeddings
        self.a = FactorShape(1, self.inputs, 1)
        self.g = options.shape(1, self.outputs)
        self._padding = module.padding_idx
        self.is_output = False

    def record(self, sums: Sums, x: Tensor, gradient: Tensor) -> None:
        words, rows = x.flatten(), gradient.detach().flatten(0, -2).to(self.dtype)
        if self._padding is not None:
            kept = words != self._padding
            words, rows = words[kept], rows[kept]
        sums.a[:, 0].index_add_(0, words, sums.a.new_ones(len(words)))
        sums.rows += len(words)
        self._add_gradient_rows(sums, rows, 1)

    def record_output(self, sums: Sums, x: Tensor, gradient: Tensor) -> None:
        """Add a use as an output layer, of inputs x, shape (..., dimension), and gradients, shape (..., words)."""
        rows, _ = self._rows(x.detach(), "mean")
        g, weight = self._rows(gradient.detach(), "sum")
        self.g.add_rows(sums.g, rows.unsqueeze(0), narrow=self.options.narrow)
        sums.a[:, 0] += weight * g.square().sum(0)
        sums.rows += len(rows)

    def matrix(self, values: Sequence[Tensor]) -> Tensor:
        return values[0].T.unsqueeze(0)

    def set_gradient(self, matrix: Tensor, scale: float = 1.0) -> None:
        assert self.weight.grad is not None
        torch.mul(matrix[0].T, scale, out=self.weight.grad)
