"""A layer as K-FAC sees it.

The gradient of a layer is a batch of matrices W, shape (batch, outputs, inputs); batch is 1 but for grouped
convolutions and packed projections. Its Fisher block is taken as a Kronecker product of two factors::

    F = A (x) G,   A = mean over rows of a a^T,   G = M times the sum over rows of g g^T

with a row for every sample, position and use of the layer: a its input there (a one appended for the bias) and g the
gradient of the loss there, where the loss is a mean over M terms (M g is one term's own gradient). In the notation of
KFC (Grosse and Martens 2016, arXiv:1602.01407, eq. 28-31), with S rows a sample, A is Omega / S and G is S Gamma: the
same product, in which the number of samples cancels. "Expand" and "reduce" are those of Eschenhagen et al. 2023
(arXiv:2311.00636).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hpcopt.errors import JobError
from hpcopt.solvers.kaisa import symmetric

WITHOUT_BIAS = 1  # the part of a layer with a bias that a use without it computes


@dataclass(frozen=True)
class FactorShape:
    """``batch * blocks`` symmetric matrices of ``size`` rows; size 1 is a diagonal factor."""

    batch: int
    blocks: int
    size: int

    @property
    def matrices(self) -> int:
        """Number of matrices."""
        return self.batch * self.blocks

    @property
    def features(self) -> int:
        """Rows of W, or columns, that the factor acts on."""
        return self.blocks * self.size

    @property
    def numel(self) -> int:
        """Values kept."""
        return self.matrices * symmetric.packed_length(self.size)

    def add_rows(self, packed: Tensor, x: Tensor, ones: bool = False, narrow: bool = False) -> None:
        """Add the Gram matrices of rows x, shape (batch, rows, features without the ones), to packed in place; as
        ``symmetric.add_gram`` does.
        """
        if not self.blocks:
            return
        if ones and (self.blocks > 1 or self.size == 1):
            x, ones = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2), False
        if self.size == 1:
            packed[:, 0] += x.square().sum(1).flatten()
        else:
            rows = x.reshape(*x.shape[:2], self.blocks, -1).transpose(1, 2).flatten(0, 1) if self.blocks > 1 else x
            symmetric.add_gram(packed, rows, ones, narrow)


@dataclass(frozen=True)
class Options:
    """How statistics are taken.

    Attributes:
        sharing: "expand" takes every position (token, pixel) as a row of its own; "reduce" a sample's mean input and
            summed gradient. Reduce is for positions that one loss term averages over.
        max_size: a factor with more rows than this is ``large``.
        large: what becomes of it: its diagonal, or equal blocks of at most max_size (where they divide it).
        batch_every, position_every: only every so many samples and positions (tokens; pixels in each direction) are
            looked at.
        batch_dim: which dimension of a layer's input counts samples. Only norms and "reduce" ask.
        narrow: whether products may round to bfloat16.
        bias, outputs: whether a layer takes its bias, and has a G.
        dtype: of sums and products; None: the parameters' own, at least float32.
    """

    sharing: Literal["expand", "reduce"] = "expand"
    max_size: int = 2048
    large: Literal["diagonal", "blocked"] = "diagonal"
    batch_every: int = 1
    position_every: int = 1
    batch_dim: int = 0
    narrow: bool = False
    dtype: torch.dtype | None = None
    bias: bool = True
    outputs: bool = True

    def shape(self, batch: int, features: int) -> FactorShape:
        """The factor for so many features: one block if they are few."""
        if features <= self.max_size:
            return FactorShape(batch, 1, features)
        if self.large == "blocked":
            blocks = next(k for k in range(-(-features // self.max_size), features + 1) if features % k == 0)
            return FactorShape(batch, blocks, features // blocks)
        return FactorShape(batch, features, 1)


class Sums:
    """Where a layer's rows are added up until the next step: views of the buffer that will be sent.

    Attributes:
        a, g: packed sums, shape (matrices, packed length); a is empty for a layer without A.
        rows: rows added to a so far.
    """

    def __init__(self, a: Tensor, g: Tensor) -> None:
        self.a, self.g = a, g
        self.rows = 0.0


class Input:
    """A tensor that layers take. What it adds to A is computed once for all linear layers that take it, as those of
    queries, keys and values.

    Attributes:
        x: the tensor.
        users: layers that took it.
    """

    def __init__(self, x: Tensor) -> None:
        self.x, self.users = x, 0
        self._sums: dict[tuple[FactorShape, bool], Sums] = {}

    def add_to(self, sums: Sums, layer: "Layer") -> None:
        """Do what ``layer.record_input(sums, x)`` does."""
        if self.users < 2:
            layer.record_input(sums, self.x.detach())
            return
        alike = layer.a, layer.bias is not None
        if alike not in self._sums:
            self._sums[alike] = Sums(torch.zeros_like(sums.a), sums.g)
            layer.record_input(self._sums[alike], self.x.detach())
        sums.a += self._sums[alike].a
        sums.rows += self._sums[alike].rows


def memory_of(layers: Sequence["Layer"]) -> tuple[torch.dtype, torch.device]:
    """In which dtype and where the layers' sums and gradients are.

    Raises:
        JobError: not all in one.
    """
    kinds = {(layer.dtype, layer.weight.device): layer.name for layer in layers}
    if len(kinds) > 1:
        examples = ", ".join(f"{name} ({dtype}, {device})" for (dtype, device), name in kinds.items())
        raise JobError(
            f"K-FAC keeps its factors in one place and precision, but layers differ: {examples}; name some in skip"
        ).everywhere()
    return next(iter(kinds), (torch.float32, torch.device("cpu")))


class Layer:
    """A linear map y = W a, and what the other kinds build on.

    Attributes:
        name: of the module, in the model.
        weight, bias: the parameters; weight, flattened, has shape (batch, outputs, inputs).
        a, g: shapes of the factors.
        method: by whose name its gradient is replaced.
        source: what its factors are made of: what goes through the layer, or its gradient (``matrix.py``).
    """

    method = "cholesky"
    source = "activations"

    def __init__(self, name: str, module: nn.Module, options: Options, batch: int = 1) -> None:
        assert isinstance(module.weight, nn.Parameter)
        self._setup(name, module.weight, getattr(module, "bias", None), options, batch)

    def _setup(
        self, name: str, weight: nn.Parameter, bias: nn.Parameter | None, options: Options, batch: int = 1
    ) -> None:
        self.name, self.options, self.batch = name, options, batch
        bias = bias if options.bias else None
        self.weight, self.bias = weight, bias
        self.outputs, self.inputs = len(weight) // batch, weight[0].numel()
        self.a = options.shape(batch, self.inputs + (bias is not None))
        self.g = options.shape(batch, self.outputs) if options.outputs else FactorShape(batch, 0, 1)
        self.dtype = options.dtype or (torch.float64 if weight.dtype == torch.float64 else torch.float32)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradients are preconditioned here."""
        return [p for p in (self.weight, self.bias) if p is not None]

    def record(self, sums: Sums, x: Tensor, gradient: Tensor) -> None:
        """Add one use of the layer.

        Args:
            sums: added to in place.
            x: the layer's input.
            gradient: of the loss, for the layer's output.
        """
        self.record_input(sums, x.detach())
        self.record_gradient(sums, gradient.detach())

    def record_input(self, sums: Sums, x: Tensor) -> None:
        """Add the input's rows to sums.a."""
        self._add_input_rows(sums, self._rows(x, "mean")[0])

    def record_without_bias(self, sums: Sums, x: Tensor, gradient: Tensor) -> None:
        """Add one use of the weight alone."""
        rows, _ = self._rows(x.detach(), "mean")
        self.a.add_rows(sums.a, torch.cat([rows, rows.new_zeros(len(rows), 1)], 1).unsqueeze(0))
        sums.rows += len(rows)
        self.record_gradient(sums, gradient.detach())

    def record_gradient(self, sums: Sums, gradient: Tensor) -> None:
        """Add the gradient's rows to sums.g, those left out weighed in."""
        rows, weight = self._rows(gradient, "sum")
        self._add_gradient_rows(sums, rows, weight)

    def gradient(self) -> Tensor:
        """The gradient as W, shape (batch, outputs, inputs + 1 if there is a bias)."""
        return self.matrix([p.grad.detach() for p in self.parameters() if p.grad is not None])

    def matrix(self, values: Sequence[Tensor]) -> Tensor:
        """Tensors of the shapes of parameters(), as W."""
        weight = values[0].reshape(self.batch, self.outputs, self.inputs)
        if self.bias is None:
            return weight
        return torch.cat([weight, values[1].reshape(self.batch, self.outputs, 1)], 2)

    def set_gradient(self, matrix: Tensor, scale: float = 1.0) -> None:
        """Replace the parameters' gradients by a matrix of gradient()'s shape, times scale."""
        assert self.weight.grad is not None
        weight = matrix[:, :, : self.inputs].reshape(self.weight.shape)
        torch.mul(weight, scale, out=self.weight.grad)
        if self.bias is not None:
            assert self.bias.grad is not None
            torch.mul(matrix[:, :, self.inputs].reshape(self.bias.shape), scale, out=self.bias.grad)

    @property
    def factors(self) -> int:
        """Values of both factors."""
        return self.a.numel + self.g.numel

    @property
    def sums(self) -> int:
        """Values that a rank sends of its statistics: both factors, and the number of rows."""
        return self.factors + 1

    @property
    def factor_flops(self) -> float:
        """Operations that the owner alone has, for the factors of a step."""
        return 0.0

    @property
    def numel(self) -> int:
        """Values of gradient()."""
        return self.batch * self.outputs * (self.inputs + (self.bias is not None))

    def _rows(self, x: Tensor, reduction: Literal["mean", "sum"]) -> tuple[Tensor, float]:
        """The rows of x, shape (..., features), and how many rows each stands for."""
        if x.ndim > 2:
            x = x.movedim(self.options.batch_dim, 0).flatten(1, -2)
            if self.options.sharing == "reduce":
                x = x.mean(1) if reduction == "mean" else x.sum(1)
        total = x.shape[: x.ndim - 1].numel()
        x = x[:: self.options.batch_every]
        if x.ndim > 2:
            x = x[:, :: self.options.position_every]
        rows = x.reshape(-1, x.shape[-1]).to(self.dtype)
        return rows, total / max(1, len(rows))

    def _add_input_rows(self, sums: Sums, rows: Tensor) -> None:
        rows = rows if rows.ndim == 3 else rows.unsqueeze(0)
        self.a.add_rows(sums.a, rows, self.bias is not None, self.options.narrow)
        sums.rows += rows.shape[1]

    def _add_gradient_rows(self, sums: Sums, rows: Tensor, weight: float) -> None:
        rows = rows if rows.ndim == 3 else rows.unsqueeze(0)
        self.g.add_rows(sums.g, rows * weight**0.5 if weight != 1 else rows, narrow=self.options.narrow)
