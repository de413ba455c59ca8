"""One chain of Metropolis et al. (1953): random moves, of which those to a higher energy are taken by chance."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from hpcopt.shapes.discrete import Discrete
from hpcopt.shapes.solver import Tree

State = dict[str, Tensor]


class Chain:
    """A walk over a model's states. In the long run it is in state s in a share ``exp(-E(s) / temperature)`` of its
    moves, but for a factor.

    Attributes:
        energy: of the state that it is in; None, before it has walked. NaN: a move came upon it, and the walk ended.
        best: the lowest energy of its walk.
    """

    def __init__(self, model: nn.Module, energy_of: Callable[[Discrete], float]) -> None:
        """Walk in ``model``, which is the chain's own."""
        assert isinstance(model, Discrete)
        self._model, self._moves, self._energy_of = model, model, energy_of
        self.energy: float | None = None
        self.best, self._best_state = math.inf, _copy(model.state_dict())

    def walk(self, moves: int, temperature: float, draw: np.random.Generator) -> int:
        """Propose so many moves; gives how many were taken."""
        if self.energy is None:
            self._be_at(self._energy_of(self._moves))
        energy, taken = float(self.energy or 0.0), 0
        for _ in range(moves):
            if math.isnan(energy):
                break
            self._moves.propose(draw)
            found = self._energy_of(self._moves)
            if math.isnan(found) or found <= energy or draw.random() < math.exp((energy - found) / temperature):
                energy = found
                taken += 1
                self._be_at(found)
            else:
                self._moves.undo()
        return taken

    def _be_at(self, energy: float) -> None:
        self.energy = energy
        if energy < self.best:
            self.best, self._best_state = energy, _copy(self._model.state_dict())

    @property
    def best_state(self) -> State:
        """Where the energy was ``best``."""
        return self._best_state

    def state_dict(self) -> Tree:
        """Where it is, and the best of its walk."""
        return {
            "energy": self.energy,
            "state": _copy(self._model.state_dict()),
            "best": self.best,
            "best_state": self._best_state,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Go on from a ``state_dict``."""
        self._model.load_state_dict(state["state"])
        now = self._model.state_dict()
        self._best_state = {name: state["best_state"][name].to(value.device) for name, value in now.items()}
        self.energy, self.best = state["energy"], state["best"]


def _copy(state: State) -> State:
    return {name: value.detach().clone() for name, value in state.items()}
