"""Losses, and the kind of them that a solver can take apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hpcopt.shapes.batch import TensorBatch

Loss = Callable[[nn.Module, Any], Tensor]  # of a model and a batch: mean over the batch's samples


@dataclass(frozen=True)
class OutputLoss:
    """A loss that needs nothing of the model but its outputs: the kind that a solver can take apart.

    Attributes:
        inputs: what the model gets of a batch, shape (n, ...).
        criterion: mean over the batch's samples, from the model's outputs and the batch.
        example: inputs of one sample, shape (1, ...), from which shapes and costs inside the model can be learnt.
    """

    inputs: Callable[[TensorBatch], Tensor]
    criterion: Callable[[Tensor, TensorBatch], Tensor]
    example: Tensor

    def __call__(self, model: nn.Module, batch: TensorBatch) -> Tensor:
        """The loss of a batch."""
        return self.criterion(model(self.inputs(batch)), batch)
