"""Values that cannot be sent: Inf, NaN, and what would leave the range of float32 on its way.

A step whose values some rank cannot send changes no state on any rank: its sum is NaN everywhere, as a dense sum would
be, all ranks raise NonFiniteError unless the codec carries such values, and the next step is as if this one had not
been. To that end all ranks agree on a bound before anything is encoded.
"""

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hpcopt.errors import NonFiniteError
from hpcopt.pinned import numbers

MOST = torch.finfo(torch.float32).max
BOUND_BYTES = 8  # of a bound, when ranks agree on it


class Named(Protocol):
    """A codec, for messages."""

    carries_not_finite: ClassVar[bool]

    @property
    def name(self) -> str: ...


def magnitude_bound(*terms: Tensor) -> Tensor:
    """No magnitude of the terms' sum is above this, nor any of one term: shape (1,), float64; Inf if a term holds Inf
    or NaN. The terms are float32, of any shapes and devices.
    """
    bound = 0.0
    for term in terms:
        if term.numel():
            low, high = numbers(torch.aminmax(term))  # NaN if there is one
            bound += max(-low, high)
    return torch.tensor([bound if bound < math.inf else math.inf], dtype=torch.float64)


def can_be_sent(bound: float, gain: float, codec: Named) -> bool:
    """Whether all ranks can go on, given the bound that they agreed on.

    Args:
        bound: the sum of the ranks' bounds, so that their sum stays below it too.
        gain: the most by which a magnitude may grow on its way.

    Returns:
        False if it is Inf: then some rank has Inf or NaN.

    Raises:
        NonFiniteError: on all ranks: the values are finite, and too large.
    """
    if math.isinf(bound):
        return False
    if bound * gain > MOST:
        raise NonFiniteError(
            f"codec {codec.name!r} carries magnitudes up to {MOST / gain:.3g} here and was given up to {bound:.3g}: "
            "lower the learning rate or clip the gradient"
        ).everywhere()
    return True


def refuse(values: Tensor, codec: Named) -> None:
    """Make NaN of values that some rank cannot send.

    Raises:
        NonFiniteError: on all ranks, unless the codec is one that carries Inf and NaN.
    """
    values.fill_(math.nan)
    if not codec.carries_not_finite:
        raise NonFiniteError(
            f"codec {codec.name!r} cannot carry the Inf or NaN that a rank's gradient holds: leave this step out, "
            "lower the learning rate, clip the gradient, or use codec 'dense' or 'half', which carry them on"
        ).everywhere()
