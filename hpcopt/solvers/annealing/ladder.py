"""Parallel tempering's ladder of temperatures, and swaps between neighbours on it (Swendsen & Wang 1986; Geyer 1991).

Chains at rungs i and j swap by chance ``min(1, exp((1/T_i - 1/T_j) (E_i - E_j)))``, which leaves the product of their
Boltzmann distributions as it is. What is swapped is the chains' rungs, not their states: nothing but energies travels.
"""

import math
from collections.abc import Sequence

import numpy as np

from hpcopt.shapes.solver import Tree


class Ladder:
    """Which chain is at which temperature.

    Attributes:
        temperatures: of the rungs, (K,), the coldest first.
        rungs: the rung of each chain.
        swaps, tries: between each rung and the next, (K - 1,), so far.
    """

    def __init__(self, temperatures: Sequence[float]) -> None:
        """Put chain k on rung k."""
        self.temperatures, self.rungs = tuple(temperatures), list(range(len(temperatures)))
        self.swaps, self.tries = ([0] * (len(temperatures) - 1) for _ in range(2))

    def swap(self, energies: Sequence[float], step: int, draw: np.random.Generator) -> None:
        """Let every other pair of neighbours swap, by the energies of the chains: those above even rungs in even steps,
        and the others in odd ones.
        """
        at = np.argsort(self.rungs).tolist()  # the chain on each rung
        for low in range(step % 2, len(at) - 1, 2):
            colder, hotter = at[low], at[low + 1]
            gain = 1 / self.temperatures[low] - 1 / self.temperatures[low + 1]
            exponent = gain * (energies[colder] - energies[hotter])
            self.tries[low] += 1
            if draw.random() < math.exp(min(exponent, 0.0)):  # never by NaN, of two infinite energies
                self.rungs[colder], self.rungs[hotter] = low + 1, low
                self.swaps[low] += 1

    def state_dict(self) -> Tree:
        """Where the chains are."""
        return {"rungs": self.rungs, "swaps": self.swaps, "tries": self.tries}

    def load_state_dict(self, state: Tree) -> None:
        """Go on from a ``state_dict``.

        Raises:
            ValueError: it is of another number of chains.
        """
        if len(state["rungs"]) != len(self.rungs):
            raise ValueError(f"it has {len(state['rungs'])} chains, and the job {len(self.rungs)}")
        self.rungs, self.swaps, self.tries = (list(state[key]) for key in ("rungs", "swaps", "tries"))


def geometric(first: float, last: float, count: int) -> list[float]:
    """``count`` temperatures from first to last, each by one factor from the one before.

    >>> geometric(1.0, 16.0, 3)
    [1.0, 4.0, 16.0]
    """
    return [first * (last / first) ** (k / max(1, count - 1)) for k in range(count)]
