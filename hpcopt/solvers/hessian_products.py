"""The Hessian of the global mean loss times random signs, for optimizers that ask for it.

The products are sums over the ranks, as gradients are. They ride an exchange of their own with the job's settings, so
they are compressed, counted and owed as gradients are; a step that looks at the Hessian sends twice as much. Signs are
a function of the run's seed and the step, the same on every rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcopt.exchange import Exchange
from hpcopt.exchange.reducer import Tree
from hpcopt.optim.adahessian import AdaHessian, products, rademacher
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.context import Context


class HessianProducts:
    """Backward passes that also give products, in the steps in which an optimizer's Hessian is due."""

    def __init__(self, optimizer: AdaHessian, model: nn.Module, context: Context) -> None:
        """Holds as many values as the model has trained parameters. Collective."""
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer, self._parameters = optimizer, optimizer.parameters
        self._sums = [nn.Parameter(torch.zeros_like(p)) for p in self._parameters]
        named = [(f"{names[p]}.product", s) for p, s in zip(self._parameters, self._sums, strict=True)]
        seed = context.seed("products")
        self._exchange = Exchange(context.world, named, context.required_exchange, seed=seed, clock=context.clock)
        self._seed = context.seed("signs")

    def begin(self, step: int) -> bool:
        """Whether this step looks at the Hessian, by signs of its own."""
        if not self._optimizer.due:
            return False
        self._exchange.zero()
        self._signs = rademacher(self._parameters, derive(self._seed, step, EVERY_RANK, "signs"))
        return True

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients to ``grad``, and its products to the step's."""
        gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        found = products(gradients, self._parameters, self._signs)
        with torch.no_grad():
            for p, s, gradient, product in zip(self._parameters, self._sums, gradients, found, strict=True):
                if gradient is not None:
                    assert p.grad is not None
                    p.grad.add_(gradient)
                assert s.grad is not None
                s.grad.add_(product)

    def finish(self) -> None:
        """Sum the products over the ranks and let the optimizer look at them. Collective."""
        self._exchange.finish()
        self._optimizer.observe([s.grad for s in self._sums if s.grad is not None])

    def planned_bytes(self) -> int:
        """Bytes that this rank sends in a step that looks at the Hessian, beside the gradients' own."""
        return self._exchange.planned_bytes()

    def rank_state_dict(self) -> Tree:
        """This rank's own state."""
        return self._exchange.rank_state_dict()

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        """Take over the states of all ranks that saved."""
        self._exchange.load_state_dict(parts)
