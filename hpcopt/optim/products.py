"""The Hessian times a vector, exactly, by differentiating ``gradient . vector``.

A layer ``y = x W^T`` with a dense V for W takes six products of matrices beside the gradient's three. Two of the six
are V's own, ``x V^T`` and ``dL/dy V``; with ``V = a b^T`` (``hpcopt.optim.signs``) they are products with vectors::

    gradient . vector = sum over samples of (dL/dy . a) (x . b)

Four are left, and two of them in a first layer. So are convolutions taken. Whatever else is done with a parameter goes
by the dense vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hpcopt.errors import UnsupportedError
from hpcopt.optim.signs import Outer, Vector, dense
from hpcopt.twice import DifferentiableTwice


def products(
    gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], vectors: Sequence[Vector]
) -> list[Tensor]:
    """The Hessian times a vector, from gradients.

    Args:
        gradients: that keep their graphs; None, or without a graph, where the loss is linear or does not depend.
        parameters, vectors: of the same shapes.

    Raises:
        UnsupportedError: something in the loss has no second derivative.
    """
    slopes = [(g, dense(v)) for g, v in zip(gradients, vectors, strict=True) if g is not None]
    return _differentiated(slopes, parameters)


def gradients_and_products(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], parameters: Sequence[Tensor], vectors: Sequence[Vector]
) -> tuple[Tensor, Sequence[Tensor | None], list[Tensor]]:
    """Loss, gradients and the Hessian times a vector, from one pass forward.

    Args:
        model: that has the parameters.
        loss: of the model, called once, with aliases in place of weights.
        parameters, vectors: of the same shapes.

    Raises:
        UnsupportedError: something in the loss has no second derivative.
    """
    names: dict[Tensor, str] = {p: f"model.{name}" for name, p in model.named_parameters()}
    pairs = list(zip(parameters, vectors, strict=True))
    plain = Tensor, nn.Parameter  # one of a class of its own has its own ways of linear maps
    aliases = {p: _alias(p, v) for p, v in pairs if isinstance(v, Outer) and type(p) in plain}

    def derivatives() -> tuple[Tensor, Sequence[Tensor | None], list[Tensor]]:
        with DifferentiableTwice():
            value = loss(model)
        return _found(value, pairs, aliases)

    work = _Work(model, derivatives)
    found: tuple[Tensor, Sequence[Tensor | None], list[Tensor]] = torch.func.functional_call(
        work, {names[p]: alias for p, alias in aliases.items()}, ()
    )
    return found


class _Work(nn.Module):
    """What is done with a model while its weights are replaced; backward, too, as layers may be computed again then."""

    def __init__(self, model: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self._work = model, work

    def forward(self) -> Any:
        return self._work()


class _Use(NamedTuple):
    """A linear map by a weight: where the gradient of its output comes, the output's channels, and ``x . b``."""

    output: GradientEdge
    channel: int
    inner: Tensor

    def slope(self, gradient: Tensor, column: Tensor) -> Tensor:
        """The loss's derivative as the weight moves by the column times b."""
        return (gradient.movedim(self.channel, -1) @ column).mul(self.inner).sum()


class _Alias(Tensor):
    """A weight that notes the linear maps by it. These take the weight itself, and all other uses this alias.

    Attributes:
        weight: the parameter.
        other: where the gradient of the other uses comes.
        signs: the vector.
        uses: the linear maps.
    """

    weight: Tensor
    other: Tensor
    signs: Outer
    uses: list[_Use]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _MAPS.get(func, func)(*args, **(kwargs or {}))


def _alias(weight: Tensor, signs: Outer) -> _Alias:
    other = weight.view_as(weight)
    alias = other.as_subclass(_Alias)
    alias.weight, alias.other, alias.signs, alias.uses = weight, other, signs, []
    return alias


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, _Alias):
        return F.linear(x, weight, bias)
    out = F.linear(x, weight.weight, bias)
    if out.requires_grad:
        weight.uses.append(_Use(get_gradient_edge(out), -1, x @ weight.signs.row))
    return out


def _convolution(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def convolved(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not isinstance(weight, _Alias) or groups != 1:
            return convolve(x, weight, bias, stride, padding, dilation, groups)
        out = convolve(x, weight.weight, bias, stride, padding, dilation)
        if out.requires_grad:
            channel, kernel = 1 - weight.dim(), weight.signs.row.unsqueeze(0)
            inner = convolve(x, kernel, None, stride, padding, dilation).squeeze(channel)
            weight.uses.append(_Use(get_gradient_edge(out), channel, inner))
        return out

    return convolved


_MAPS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    **{convolve: _convolution(convolve) for convolve in (F.conv1d, F.conv2d, F.conv3d)},
}


def _found(
    loss: Tensor, pairs: Sequence[tuple[Tensor, Vector]], aliases: Mapping[Tensor, _Alias]
) -> tuple[Tensor, Sequence[Tensor | None], list[Tensor]]:
    """Gradients by the parameters, and by what their moves are seen at: outputs, aliases, or themselves."""
    parameters = [p for p, _ in pairs]
    uses = [(use, alias.signs.column) for alias in aliases.values() for use in alias.uses]
    places: list[Any] = [aliases[p].other if p in aliases else p for p in parameters]
    at = [*parameters, *places, *(use.output for use, _ in uses)]
    found = torch.autograd.grad(loss, at, create_graph=True, allow_unused=True)
    own, elsewhere, outputs = found[: len(pairs)], found[len(pairs) : 2 * len(pairs)], found[2 * len(pairs) :]
    slopes: list[tuple[Tensor, Tensor | None]]
    slopes = [(g, dense(v)) for g, (_, v) in zip(elsewhere, pairs, strict=True) if g is not None]
    slopes += [(u.slope(g, column), None) for g, (u, column) in zip(outputs, uses, strict=True) if g is not None]
    return loss.detach(), [None if g is None else g.detach() for g in own], _differentiated(slopes, parameters)


def _differentiated(slopes: Sequence[tuple[Tensor, Tensor | None]], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives of the sum of tensors times vectors; of a tensor of one value, if there is no vector."""
    curved = [(g, v) for g, v in slopes if g.grad_fn is not None]
    if not curved:
        return [torch.zeros_like(p) for p in parameters]
    try:
        found = torch.autograd.grad([g for g, _ in curved], list(parameters), [v for _, v in curved], allow_unused=True)
    except RuntimeError as cause:
        raise UnsupportedError(f"the loss has no second derivative: {str(cause).splitlines()[0]}") from cause
    return [torch.zeros_like(p) if h is None else h for p, h in zip(parameters, found, strict=True)]
