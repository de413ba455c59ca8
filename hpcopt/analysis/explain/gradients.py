"""Explanations by the gradient of a class's number with respect to the input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hpcopt.analysis.explain.question import Question
from hpcopt.errors import JobError


def saliency(q: Question) -> Tensor:
    """The gradient itself, with its sign (Simonyan et al. 2013, arXiv:1312.6034)."""
    from captum.attr import Saliency

    found: Tensor = Saliency(q.model).attribute(q.x, abs=False, **q.arguments())
    return found


def smooth(q: Question) -> Tensor:
    """The mean gradient at noisy inputs (Smilkov et al. 2017, arXiv:1706.03825), of one input at a time."""
    from captum.attr import NoiseTunnel, Saliency

    found: Tensor = NoiseTunnel(Saliency(q.model)).attribute(
        q.x,
        nt_type="smoothgrad",
        nt_samples=q.settings.draws,
        stdevs=_noise(q),
        abs=False,
        **q.arguments(),
    )
    return found


def integrated(q: Question) -> Tensor:
    """Gradients on the line from the baseline, times its length (Sundararajan et al. 2017, arXiv:1703.01365): what they
    add up to is the difference of the numbers at both ends.
    """
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(q.model).attribute(
        q.x,
        baselines=q.baseline.expand_as(q.x),
        n_steps=q.settings.steps,
        internal_batch_size=max(q.settings.evaluations, len(q)),
        **q.arguments(),
    )
    return found


def gradient_shap(q: Question) -> Tensor:
    """Gradients at random points of that line, with noise (Erion et al. 2019, arXiv:1906.10670), of one input at a
    time.
    """
    from captum.attr import GradientShap

    found: Tensor = GradientShap(q.model).attribute(
        q.x, baselines=q.baseline, n_samples=q.settings.draws, stdevs=_noise(q), **q.arguments()
    )
    return found


def guided(q: Question) -> Tensor:
    """The gradient with what is negative held back at every ReLU (Springenberg et al. 2014, arXiv:1412.6806).

    captum has this for modules of class ``torch.nn.ReLU``; where a network calls ``F.relu``, as residual blocks do, its
    result is the plain gradient. Here both count.

    Raises:
        JobError: the network has neither.
    """
    with GuidedRelus() as mode:
        gradient = saliency(q)
    if not mode.relus:
        raise JobError("guided: the network has no ReLU to guide gradients at; use saliency")
    return gradient


class GuidedRelus(TorchFunctionMode):
    """While entered, gradients go through a ReLU only where they and its input are positive.

    Attributes:
        relus: that were called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relus = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _RELUS:
            return func(*args, **(kwargs or {}))
        self.relus += 1
        return _GuidedRelu.apply(args[0] if args else kwargs["input"])  # type: ignore[no-untyped-call]


_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class _GuidedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        positive: Tensor = ctx.saved_tensors[0] > 0
        return gradients[0].clamp(min=0) * positive


def _noise(q: Question) -> float:
    """Standard deviation of the noise: a part of the range of the input's values."""
    return q.settings.noise * float(q.x.max() - q.x.min())
