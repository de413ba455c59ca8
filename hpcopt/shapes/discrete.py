"""What a model must do to be annealed: move at random among finitely many states, and take a move back."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from hpcopt.shapes.loss import Loss


@runtime_checkable
class Discrete(Protocol):
    """A ``torch.nn.Module`` whose parameters, or buffers, take one of finitely many states.

    Its state is its ``state_dict``; a copy of the module (``copy.deepcopy``) walks by itself.
    """

    def propose(self, draw: np.random.Generator) -> None:
        """Make a random move, drawn from nothing else. A move and the way back must be equally likely; moves must lead
        from each state to every other.
        """

    def undo(self) -> None:
        """Take the last move back, bit for bit. It is called at most once after a move."""

    def energy(self, loss: Loss, batch: Any) -> float:
        """``float(loss(self, batch))``, in evaluation mode and without gradients; a model that knows a quicker way to
        it, as by what the last move has changed, may go that way. The batch is the same object at every call.
        """
