"""PowerSGD: a rank-r approximation of the mean gradient by one step of a warm-started power iteration.

Vogels et al. 2019, arXiv:1905.13727, alg. 1 and 2. With the matrix M_i of rank i and its error E_i:
``A_i = M_i + E_i``; ``P = sum A_i Q``, all-reduced; P orthonormalised; ``Q = sum A_i^T P``, all-reduced; the sum of
the A_i is taken as ``P Q^T``; ``E_i = A_i - P (A_i^T P)^T``, so that ``|E_i| <= |A_i|`` and
``sum E_i = sum A_i - P Q^T``. Q is kept for the next step.

Parameters with fewer than two dimensions, and those that it would not make ``min_compression`` times smaller, travel
dense with the first sum.

The ranks orthonormalise the same bits; on unlike processors the results may differ in the last place.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hpcopt.compress.residuals import Layout, Residuals, views
from hpcopt.compress.rounds import Reduction, RoundsConfig, agree
from hpcopt.seeds import EVERY_RANK, derive


class PowerSGD(RoundsConfig):
    """Two rounds of sums, of r (rows + columns) values a matrix."""

    on_device: ClassVar[bool] = True

    name: Literal["powersgd"] = "powersgd"
    rank: int = Field(4, ge=1, description="columns of P and Q")
    min_compression: float = Field(2.0, ge=1, description="matrices that shrink less travel dense")
    warm_start: bool = Field(True, description="begin with the Q of the step before")

    def build(self) -> "PowerSGDState":
        """The owner of Q and of the errors."""
        return PowerSGDState(self)

    def rank_for(self, shape: tuple[int, ...]) -> int:
        """The rank used for a parameter of this shape; 0 if it travels dense."""
        if len(shape) < 2 or prod(shape) == 0:
            return 0
        rows, columns = shape[0], prod(shape[1:])
        rank = min(self.rank, rows, columns)
        return rank if rows * columns >= self.min_compression * rank * (rows + columns) else 0


class PowerSGDState:
    """What ``PowerSGD`` describes, with its state by parameter name."""

    shared_seed: ClassVar[bool] = True

    def __init__(self, config: PowerSGD) -> None:
        self.config = config
        self._errors = Residuals()
        self._right: dict[str, Tensor] = {}

    def rounds(self, bucket: Tensor, layout: Layout, *, seed: int) -> Iterator[Reduction]:
        """The sum of P and of what is dense, then the sum of Q."""
        ranks = {name: self.config.rank_for(shape) for name, shape in layout.items()}
        parts = views(bucket, layout)
        dense = [part for name, part in parts.items() if not ranks[name]]
        low = {name: rank for name, rank in ranks.items() if rank}
        compressed = {name: layout[name] for name in low}
        owed = self._errors.flat(compressed, bucket.device)
        if not (yield from agree(self.config, self._gain(compressed), bucket, owed)):
            return
        errors = views(owed, compressed)
        matrices = {name: errors[name].add_(parts[name]).flatten(1) for name in low}
        right = {name: self._start(name, matrix, low[name], seed) for name, matrix in matrices.items()}

        first = torch.cat(
            [(matrices[name] @ right[name]).view(-1) for name in low]
            + [part.reshape(-1) for part in dense]
            + [bucket[:0]]
        )
        yield Reduction("sum", first)

        sizes = [matrices[name].shape[0] * rank for name, rank in low.items()] + [part.numel() for part in dense]
        pieces = torch.split(first, sizes) if sizes else ()
        left = {name: _orthonormal(piece.view(-1, low[name])) for name, piece in zip(low, pieces, strict=False)}
        for part, piece in zip(dense, pieces[len(low) :], strict=True):
            part.copy_(piece.view(part.shape))
        if not low:
            return

        second = torch.cat([(matrices[name].T @ left[name]).view(-1) for name in low])
        right = dict(
            zip(low, torch.split(second, [matrices[name].shape[1] * rank for name, rank in low.items()]), strict=True)
        )
        right = {name: piece.view(-1, low[name]) for name, piece in right.items()}
        for name, matrix in matrices.items():
            matrix.addmm_(left[name], right[name].T, alpha=-1)
        yield Reduction("sum", second)

        for name in low:
            torch.mm(left[name], right[name].T, out=parts[name].flatten(1))
            self._right[name] = right[name].clone()

    def settle(self, bucket: Tensor, layout: Layout) -> None:
        """Add what earlier payloads lacked."""
        self._errors.settle(bucket, layout)

    def state_dict(self) -> dict[str, Tensor]:
        """Errors and warm starts, under ``error/`` and ``right/`` and the parameter name."""
        errors = {f"error/{name}": tensor for name, tensor in self._errors.state_dict().items()}
        return errors | {f"right/{name}": tensor for name, tensor in self._right.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict``."""
        self._errors.load_state_dict({k.removeprefix("error/"): t for k, t in state.items() if k.startswith("error/")})
        self._right = {k.removeprefix("right/"): t.clone() for k, t in state.items() if k.startswith("right/")}

    def _start(self, name: str, matrix: Tensor, rank: int, seed: int) -> Tensor:
        """Q to begin with: the last one, or Gaussian values that are the same on all ranks."""
        kept, columns = self._right.get(name), matrix.shape[1]
        if self.config.warm_start and kept is not None and kept.shape == (columns, rank):
            return _scaled(kept).to(matrix.device)
        generator = torch.Generator().manual_seed(derive(seed, 0, EVERY_RANK, name))
        return torch.randn(columns, rank, generator=generator).to(matrix.device)

    def _gain(self, layout: Layout) -> float:
        """Of ``|A Q|``, with magnitudes of Q below 8, also if it is drawn, and of ``|P Q^T|``, with orthonormal P."""
        sides = [(shape[0], prod(shape[1:])) for shape in layout.values()]
        return max((float(max(8 * columns, self.config.rank * rows)) for rows, columns in sides), default=1.0)


def _scaled(right: Tensor) -> Tensor:
    """Q times the power of two that brings its largest magnitude to [1/2, 1): only its span matters, and values as
    large as gradients would leave the range of float32 in A Q.
    """
    exponent = torch.frexp(right.abs().amax()).exponent
    return torch.ldexp(right, -exponent)


def _orthonormal(matrix: Tensor) -> Tensor:
    """Orthonormal columns with the span of the matrix's; any completion if it has not full rank."""
    basis: Tensor = torch.linalg.qr(matrix)[0]
    return basis
