"""A node's own optimizer: it steps when the node has gradients of enough instances, and asks nobody."""

from collections.abc import Callable

import torch

from hpcopt.dataflow.transform import Transform
from hpcopt.errors import fitting
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.solver import Tree


class Learner:
    """Takes the gradients of a node's parameters."""

    def __init__(
        self, node: Transform, optimizer: torch.optim.Optimizer, every: int, rate: Callable[[int], float]
    ) -> None:
        """Step by the mean gradient of ``every`` instances, at the learning rate of the last one, by its number."""
        self.node, self.optimizer, self._every, self._rate = node, optimizer, every, rate
        self._gathered = 0  # instances whose gradients stand in the parameters
        node.whole = self.learn

    def learn(self, instance: int) -> bool:
        """Count an instance's gradient; step if they are enough. Says whether parameters moved."""
        self._gathered += 1
        if self._gathered < self._every:
            return False
        gradients = [p.grad for p in self.node.parameters if p.grad is not None]
        if self._every > 1:
            torch._foreach_div_(gradients, self._every)
        set_learning_rate(self.optimizer, self._rate(instance))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._gathered = 0
        return True

    def state_dict(self) -> Tree:
        """The optimizer's state, and gradients that wait for more."""
        return {
            "optimizer": optimizer_state(self.optimizer),
            "gathered": self._gathered,
            "gradients": [p.grad for p in self.node.parameters] if self._gathered else [],
            "updates": self.node.updates,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Go on from a ``state_dict``.

        Raises:
            CheckpointError: it does not fit.
        """
        with fitting(f"node {self.node.name!r}"):
            restore_optimizer(self.optimizer, state["optimizer"])
            self._gathered, self.node.updates = state["gathered"], state["updates"]
            if self._gathered:
                for p, gradient in zip(self.node.parameters, state["gradients"], strict=True):
                    p.grad = None if gradient is None else gradient.clone().to(p.device)
