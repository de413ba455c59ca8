"""What a network answers to: inputs that are made, or chosen, for what a layer gives of them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.analysis.explain.layers import outputs_of

Aim = Callable[[Tensor], Tensor]  # of what a layer gives, (1, ...), to one number, which is to grow

SIXTH = 1e-7  # of the sixth power of the 6-norm, which keeps an inverted image's values small
VARIATION = 1e-8  # of its total variation, which keeps it smooth
OCTAVES = (0.5, 0.71, 1.0)  # sizes at which a dream is dreamt, of the input's


def one_class(number: int) -> Aim:
    """The number of a class, in outputs (1, classes)."""
    return lambda outputs: outputs[0, number]


def one_filter(number: int) -> Aim:
    """The mean of one map of a convolution, or one unit's output."""
    return lambda outputs: outputs[0, number].mean()


def whole_layer(outputs: Tensor) -> Tensor:
    """The mean square of all that a layer gives."""
    return outputs.square().mean()


def maximised(
    model: nn.Module,
    layer: nn.Module,
    aim: Aim,
    start: Tensor,
    limits: tuple[float, float],
    steps: int = 64,
    rate: float = 0.05,
) -> Tensor:
    """Ascend an aim from a start (1, ...) by steps of one length (Erhan et al. 2009, "Visualizing higher-layer features
    of a deep network"): the mean change of a value is ``rate`` of the width between the limits, which none leaves. The
    input with the highest aim on the way is given.
    """
    low, high = limits
    x, best, highest = start.clone(), start, torch.tensor(-torch.inf)
    for _ in range(steps + 1):
        value, gradient = _slope(model, layer, aim, x)
        if value > highest:
            best, highest = x, value
        size = gradient.abs().mean()
        if not size > 0:
            break
        x = (x + rate * (high - low) * gradient / size).clamp(low, high)
    return best


def dreamt(model: nn.Module, layer: nn.Module, image: Tensor, steps: int = 16, rate: float = 0.05) -> Tensor:
    """A deep dream of an image (1, channels, height, width): what a layer sees in it is made stronger, at growing
    sizes, and the detail lost by a smaller size is put back (Mordvintsev et al. 2015).
    """
    height, width = image.shape[2:]
    detail = torch.zeros_like(image)
    for octave in OCTAVES:
        size = [max(1, round(side * octave)) for side in (height, width)]
        base = _resized(image, size)
        x = base + _resized(detail, size)
        for _ in range(steps):
            try:
                _, gradient = _slope(model, layer, whole_layer, x)
            except RuntimeError:  # the network takes one size only
                _, gradient = _slope(model, layer, whole_layer, _resized(x, [height, width]))
                gradient = _resized(gradient, size)
            x = x + rate * gradient / gradient.abs().mean().clamp(min=1e-12)
        detail = _resized(x - base, [height, width])
    return image + detail


def inverted(
    model: nn.Module, layer: nn.Module, image: Tensor, start: Tensor, steps: int = 200, rate: float = 0.1
) -> Tensor:
    """An image that a layer cannot tell from another (Mahendran and Vedaldi 2014, arXiv:1412.0035): minimise by Adam

    |f(x) - f(image)|^2 / |f(image)|^2 + 1e-7 |x|_6^6 + 1e-8 TV(x).
    """
    with torch.no_grad(), outputs_of(layer) as seen:
        model(image)
    wanted = seen[0]
    scale = wanted.square().sum().clamp(min=1e-12)
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=rate)
    for _ in range(steps):
        with torch.enable_grad(), outputs_of(layer) as seen:
            model(x)
            loss = (seen[0] - wanted).square().sum() / scale + SIXTH * x.pow(6).sum() + VARIATION * total_variation(x)
            (x.grad,) = torch.autograd.grad(loss, [x])
        optimizer.step()
    return x.detach()


def total_variation(x: Tensor) -> Tensor:
    """Sum of the squared differences of neighbouring values, (), along all dimensions but the first two."""
    return torch.stack([x.diff(dim=d).square().sum() for d in range(2, x.dim())]).sum()


def prototypes(features: Tensor, count: int) -> list[int]:
    """The rows that stand best for all, chosen one by one so that the maximum mean discrepancy between them and all
    falls most (Kim et al. 2016, "Examples are not enough, learn to criticize"), with a Gaussian kernel as wide as the
    median distance.

    Args:
        features: (n, ...).
        count: how many, at most n.
    """
    x = features.flatten(1).double()
    square = torch.cdist(x, x).square()
    kernel = torch.exp(-square / square[square > 0].median() if (square > 0).any() else -square)
    near_all, chosen = kernel.mean(1), list[int]()
    among = torch.zeros(len(x), dtype=torch.float64)  # of each row's kernel with those that are chosen
    for _ in range(min(count, len(x))):
        size = len(chosen) + 1
        gain = 2 * near_all / size - (2 * among + kernel.diagonal()) / size**2
        gain += (2 * near_all[chosen].sum() / size - kernel[chosen][:, chosen].sum() / size**2) if chosen else 0.0
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        chosen.append(best)
        among += kernel[best]
    return chosen


def features_of(model: nn.Module, layer: nn.Module, arguments: Sequence[Tensor]) -> Tensor:
    """What a layer gives, (n, ...)."""
    with torch.no_grad(), outputs_of(layer) as seen:
        model(*arguments)
    return seen[0]


def _slope(model: nn.Module, layer: nn.Module, aim: Aim, x: Tensor) -> tuple[Tensor, Tensor]:
    """The aim at x and its gradient there."""
    with torch.enable_grad(), outputs_of(layer) as seen:
        x = x.detach().requires_grad_()
        model(x)
        value = aim(seen[0])
        (gradient,) = torch.autograd.grad(value, [x])
    return value.detach(), gradient


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)
