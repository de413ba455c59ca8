"""Values that stand in a model for a while, in place of this rank's own."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Aside:
    """Keeps this rank's own values of tensors while others stand there."""

    def __init__(self) -> None:
        self._own: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def show(self, values: Mapping[Tensor, Tensor]) -> None:
        """Put values into tensors, until ``restore``."""
        self.restore()
        for tensor, value in values.items():
            self._own[tensor] = tensor.detach().clone()
            tensor.copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Put this rank's own values back, if others are there."""
        for tensor, own in self._own.items():
            tensor.copy_(own)
        self._own = {}

    def forget(self) -> None:
        """What stands in the tensors now is the rank's own."""
        self._own = {}

    def own(self, tensor: Tensor) -> Tensor:
        """This rank's own value of a tensor."""
        return self._own.get(tensor, tensor).detach()
