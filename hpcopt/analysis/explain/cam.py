"""Class activation maps: which places of a convolution's output speak for a class, enlarged to the input's size.

Sizes: n images of H x W pixels; the layer gives K maps A of h x w. All maps are (n, 1, H, W): a map does not tell an
image's channels apart.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hpcopt.analysis.explain.layers import map_layer, outputs_of
from hpcopt.analysis.explain.question import Question


def grad_cam(q: Question) -> Tensor:
    """``relu(sum_k w_k A_k)``, w_k the mean gradient of the class's number over map k (Selvaraju et al. 2016,
    arXiv:1610.02391).
    """
    from captum.attr import LayerGradCam

    layer = map_layer(q, "grad_cam")
    return _enlarged(LayerGradCam(q.model, layer).attribute(q.x, relu_attributions=True, **q.arguments()), q)


def grad_cam_pp(q: Question) -> Tensor:
    """Grad-CAM++ (Chattopadhyay et al. 2017, arXiv:1710.11063): each place of a map weighs for itself,

        a = g^2 / (2 g^2 + sum(A) g^3),   w_k = sum(a relu(g)),

    with g the gradient of the class's number. The paper's gradient is that of exp(number), which is exp(number) g: this
    factor scales a whole map, and is left out, since it leaves float32 at a number of 89.
    """
    maps, gradient = _maps_and_gradient(replace(q, layer=map_layer(q, "grad_cam_pp")))
    square = gradient.square()
    below = 2 * square + maps.sum((2, 3), keepdim=True) * square * gradient
    a = torch.where(below == 0, 0.0, square / torch.where(below == 0, 1.0, below))
    weights = (a * gradient.relu()).sum((2, 3), keepdim=True)
    return _enlarged((weights * maps).sum(1, keepdim=True).relu(), q)


def score_cam(q: Question) -> Tensor:
    """Score-CAM (Wang et al. 2019, arXiv:1910.01279), without gradients: map k weighs by what the class's number is
    where the input is seen through it,

        w = softmax over k of f(x M_k + b (1 - M_k)),   M_k the enlarged map between 0 and 1, b the baseline.
    """
    return replace(q, layer=map_layer(q, "score_cam")).by_row(_score_cam)


def _score_cam(q: Question) -> Tensor:
    assert q.layer is not None
    with torch.no_grad():
        with outputs_of(q.layer) as seen:
            q.forward(q.x)
        maps = _enlarged(seen[0].transpose(0, 1), q)  # (K, 1, H, W)
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        masks = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
        through = (q.x * mask + q.baseline * (1 - mask) for mask in torch.split(masks, q.settings.evaluations))
        numbers = torch.cat([q.forward(x)[:, q.target[0]] for x in through])
        return (numbers.softmax(0)[:, None, None, None] * maps).sum(0, keepdim=True).relu()


def _maps_and_gradient(q: Question) -> tuple[Tensor, Tensor]:
    """A and g, each (n, K, h, w)."""
    assert q.layer is not None
    with torch.enable_grad(), outputs_of(q.layer) as seen:
        numbers = q.forward(q.x.detach().requires_grad_())
        (gradient,) = torch.autograd.grad(numbers.gather(1, q.target[:, None]).sum(), seen[0])
    return seen[0].detach(), gradient


def _enlarged(maps: Tensor, q: Question) -> Tensor:
    """(m, 1, h, w) as (m, 1, H, W)."""
    return F.interpolate(maps.detach(), q.x.shape[2:], mode="bilinear", align_corners=False)
