"""AdaHessian: Adam with the Hessian's diagonal in place of squared gradients (Yao et al. 2020, arXiv:2006.00719).

With v of random signs, ``|H v|`` is an estimate of the diagonal's size (Hutchinson's, exact where H is diagonal). It is
averaged over a kernel, a row or a block, and then::

    m <- beta1 m + (1 - beta1) g                s <- beta2 s + (1 - beta2) D^2
    x <- x - lr (m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t))^power + eps) + weight_decay x)

A look at the Hessian every k steps stands for all k: it weighs ``1 - beta2^k``, and s stays until the next one, so that
a step in between is one of momentum.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import UnsupportedError
from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.derivatives import Derivatives
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.products import gradients_and_products, products
from hpcopt.optim.rule import CountedRule, gradients
from hpcopt.optim.signs import rademacher

Average = Literal["kernel", "row", "block"]


class AdaHessianConfig(OptimizerConfig):
    """Adam with the Hessian's diagonal, estimated from one more derivative of the loss."""

    asks: ClassVar[frozenset[str]] = frozenset({"gradient", "product"})

    name: Literal["adahessian"] = "adahessian"
    lr: float = Field(0.15, gt=0, description="learning rate at the top of the schedule")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the mean gradient and of the diagonal")
    eps: float = Field(1e-4, gt=0, description="added to the diagonal's size")
    power: float = Field(1.0, ge=0, le=1, description="of the diagonal: 1 as Newton's, 0 leaves momentum")
    every: int = Field(1, ge=1, description="steps from one look at the Hessian to the next")
    parts: int = Field(
        1, ge=1, description="a look takes one of so many parts of each rank's samples, at random: cheaper, and noisier"
    )
    average: Average = Field(
        "kernel", description="what of the diagonal is averaged: convolution kernels; rows of matrices, too; blocks"
    )
    block: int = Field(32, ge=1, description='values in one block of average = "block"')
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay of weights of two or more dimensions")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        return AdaHessian(
            decay_matrices_only(parameters, self.weight_decay),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            power=self.power,
            every=self.every,
            parts=self.parts,
            average=self.average,
            block=self.block,
        )


class AdaHessian(CountedRule):
    """The optimizer. A group counts its ``steps``. State by parameter: ``step``; of its shape ``m``, ``s`` and
    ``size``, what m is divided by; and ``weight``, the share of s that is not of its start at 0.

    In a loop of one's own, on one process:

    >>> net = nn.Linear(1, 1, bias=False)
    >>> optimizer = AdaHessian(net.parameters(), lr=1.0, betas=(0.0, 0.0), eps=1e-12)
    >>> loss = optimizer.backward(net, lambda net: (net(torch.ones(4, 1)) - 3).square().mean())
    >>> optimizer.step()  # Newton's, as the Hessian is diagonal
    >>> torch.allclose(net.weight, torch.tensor(3.0))
    True

    ``loss.backward(create_graph=True)`` before ``step`` does, too, and costs more where there are matrices.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        *,
        power: float = 1.0,
        every: int = 1,
        parts: int = 1,
        average: Average = "kernel",
        block: int = 32,
        seed: int = 0,
    ) -> None:
        """Args as in ``AdaHessianConfig``.

        Args:
            parts: for ``differentiate``.
            seed: of the random signs, unless the products are given to ``observe``.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "power": power}
        super().__init__(params, {**defaults, "average": average, "block": block, "steps": 0})
        self._every, self._parts, self._seed = every, parts, seed

    @property
    def parameters(self) -> list[Tensor]:
        """All of them, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def due(self) -> bool:
        """Whether the coming step looks at the Hessian."""
        return self._steps % self._every == 0

    @property
    def _steps(self) -> int:
        return max(int(group["steps"]) for group in self.param_groups)

    def differentiate(self, loss: Derivatives, batch: Any, seed: int) -> SupportsFloat:
        """Leave the gradient, and look at the Hessian where that is due, by random signs of a seed. Collective."""
        if not self.due:
            return loss.gradient(batch)
        vectors = rademacher(loss.parameters, seed)
        total, found = loss.product(batch, vectors, part=seed, parts=self._parts)
        seen = dict(zip(loss.parameters, found, strict=True))
        self.observe([seen[p] for p in self.parameters])
        return total

    def backward(self, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
        """As ``differentiate``, of the loss of a model on one process; give the loss.

        Args:
            model: that has the parameters.
            loss: of it; called once.
        """
        parameters, found = self.parameters, list[Tensor | None]()
        if self.due:
            vectors = rademacher(parameters, self._seed + self._steps)
            total, found[:], seen = gradients_and_products(model, loss, parameters, vectors)
            self.observe(seen)
        else:
            total = loss(model)
            found[:] = torch.autograd.grad(total, parameters, allow_unused=True)
        for p, g in zip(parameters, found, strict=True):
            p.grad = g
        return total.detach()

    @torch.no_grad()
    def observe(self, products: Sequence[Tensor]) -> None:
        """Take what the Hessian makes of random signs, before the step.

        Args:
            products: of ``parameters``, each of its parameter's shape.
        """
        seen = dict(zip(self.parameters, products, strict=True))
        for group in self.param_groups:
            stays = group["betas"][1] ** self._every
            for p in group["params"]:
                diagonal, state = averaged(seen[p], group["average"], group["block"]), self.state[p]
                (s,), (size,) = self.states("s", [p]), self.states("size", [p])
                state["weight"] = 1 - stays * (1 - state.get("weight", 0.0))
                s.mul_(stays).addcmul_(diagonal, diagonal, value=1 - stays)
                torch.mul(s, 1 / state["weight"], out=size).pow_(group["power"] / 2).add_(group["eps"])

    def prepare(self) -> None:
        """Where the Hessian is due and nothing was observed, it comes from the gradients' graph, which is let go."""
        parameters = self.parameters
        kept = [p.grad for p in parameters]
        if not any(g is not None and g.grad_fn is not None for g in kept):
            return
        if self.due:
            self.observe(products(kept, parameters, rademacher(parameters, self._seed + self._steps)))
        for p in parameters:
            if p.grad is not None:
                p.grad = p.grad.detach()  # or graph and parameter would hold each other

    def move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if any("size" not in self.state[p] for p in parameters):
            raise UnsupportedError(
                "AdaHessian knows no Hessian yet: call optimizer.backward(model, loss), optimizer.observe(products) or "
                "loss.backward(create_graph=True)"
            )
        group["steps"] += 1
        super().move(group, parameters)

    def move_at(self, group: dict[str, Any], step: int, parameters: list[Tensor]) -> None:
        beta1, lr = group["betas"][0], group["lr"]
        m, sizes = self.states("m", parameters), self.states("size", parameters)
        torch._foreach_lerp_(m, gradients(parameters), 1 - beta1)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, m, sizes, value=-lr / (1 - beta1**step))


def averaged(diagonal: Tensor, average: Average, block: int) -> Tensor:
    """The diagonal, up to signs, with each value's size replaced by a mean: over a convolution's kernel, and with "row"
    over a matrix's row; over blocks of successive values of all that is no vector. The sum of sizes stays.

    >>> averaged(torch.tensor([[1.0, -3.0], [2.0, 6.0]]), "row", 32)
    tensor([[2., 2.],
            [4., 4.]])
    """
    over = tuple(range(2, diagonal.dim())) or ((1,) if average == "row" else ())
    if diagonal.dim() < 2 or diagonal.numel() == 0 or (average != "block" and not over):
        return diagonal
    sizes = diagonal.abs()
    if average == "block":
        blocks = torch.split(sizes.flatten(), block)
        return torch.cat([b.mean().expand(len(b)) for b in blocks]).view_as(sizes)
    return sizes.mean(over, keepdim=True).expand_as(sizes)
