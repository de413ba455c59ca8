"""An optimizer of some of an agent's parameters, on gradients that are summed over the learners."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.exchange import Exchange
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Tree, optimizer_tensors
from hpcopt.solvers.actor_critic.method import Named
from hpcopt.solvers.first_order import Scheduled


class Descent:
    """Steps down a loss; gradients of anything else are not even computed."""

    def __init__(self, named: Named, config: Scheduled, context: Context, learners: World) -> None:
        """Collective: over the learners, of which there may be one alone."""
        self.parameters = [p for _, p in named]
        self.optimizer = fused(config.optimizer.build(self.parameters))
        self._clock, self._exchange = context.clock, None
        if learners.size > 1:
            self._exchange = Exchange(
                learners, named, context.required_exchange, seed=context.seed(named[0][0]), clock=context.clock
            )

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """Step. Collective: over the learners.

        Args:
            loss: this learner's summand of the loss over all of them.
            learning_rate: of this step.
        """
        with self._clock("backward"):
            if self._exchange is None:
                for p in self.parameters:
                    p.grad = None
            else:
                self._exchange.zero()
            torch.autograd.backward(loss, inputs=self.parameters)
        if self._exchange is not None:
            self._exchange.finish()
        with self._clock("update"):
            set_learning_rate(self.optimizer, learning_rate)
            self.optimizer.step()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What the optimizer keeps, with a name for messages."""
        yield from optimizer_tensors(self.optimizer)

    def state_dict(self) -> Tree:
        """The optimizer's state, the same on all learners."""
        return optimizer_state(self.optimizer)

    def load_state_dict(self, state: Tree) -> None:
        """Go on from a ``state_dict``."""
        restore_optimizer(self.optimizer, state)

    def rank_state_dict(self) -> Tree:
        """What the exchange keeps of this learner."""
        return None if self._exchange is None else self._exchange.rank_state_dict()

    def load_rank_state_dicts(self, parts: list[Tree]) -> None:
        """Go on from those of all learners."""
        if self._exchange is not None and all(part is not None for part in parts):
            self._exchange.load_state_dict(parts)


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let torch's Adam, where it is that, go through all parameters in one loop; small networks gain by it."""
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = True, False
    return optimizer
