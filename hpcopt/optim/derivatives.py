"""What an optimizer or a solver may ask of the loss that is trained, beyond finished gradients."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, SupportsFloat, runtime_checkable

from torch import Tensor

from hpcopt.optim.signs import Vector


class Derivatives(Protocol):
    """Of the mean loss over a global batch, by the trained parameters. Whoever gives them knows of ranks; who asks
    need not.

    ``samples`` is a batch as the workload gives it, or the numbers of samples, shape (n,), int64, the same on all
    ranks: each rank then reads its own share of them, which takes data that can be read by index. A point and a list
    of vectors have a tensor of each parameter's shape, in the order of the parameters.

    Attributes:
        parameters: those that are trained: all of them, also where each rank moves some only.

    Each of the methods leaves the gradient in every ``grad`` and gives this rank's summand of the loss: a float, or
    what a GPU still computes, for which ``float`` waits. Collective.
    """

    @property
    def parameters(self) -> Sequence[Tensor]: ...

    def gradient(self, samples: Any, *, less_at: Sequence[Tensor] | None = None) -> SupportsFloat:
        """The gradient, overlapped with the backward pass.

        Args:
            samples: see above.
            less_at: give the gradient here less that of the same samples at this point. Their difference is what
                travels.
        """

    def product(
        self, samples: Any, vectors: Sequence[Vector], *, part: int = 0, parts: int = 1
    ) -> tuple[SupportsFloat, list[Tensor]]:
        """The gradient and, from the same pass forward, the Hessian times a vector.

        Args:
            samples: see above.
            vectors: one; a matrix, or kernels, as an ``Outer`` take fewer products of matrices than as a tensor.
            part, parts: the Hessian is that of this one of so many parts of each rank's share, as often as there are
                parts, so that the mean over parts is that of the share. A part is counted anew after the last one.

        Raises:
            UnsupportedError: something in the loss has no second derivative.
        """

    def variance(self, samples: Any, parts: int | None = None) -> tuple[SupportsFloat, list[Tensor]]:
        """The gradient, and the variance of each of its values between parts of the batch, weighed by their sizes.

        Args:
            samples: see above.
            parts: that each rank cuts its share into: 1 is the variance between ranks; None, between single samples.
        """

    def at(self, point: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Within it, the parameters have the values of a point; after it, parameters and buffers are as before."""


@runtime_checkable
class Asking(Protocol):
    """An optimizer that asks for more than gradients; its config says so, ``asks``."""

    def differentiate(self, loss: Derivatives, batch: Any, seed: int) -> SupportsFloat:
        """Leave the gradient in every ``grad``, take what else the coming step needs, and give the loss. Collective.

        Args:
            loss: what is asked.
            batch: of the step.
            seed: of what is drawn at random for it, the same on all ranks.
        """
