"""Discrete models that walk: a table of energies, and a classifier of signs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.shapes import Context, Loss, Samples, Task, TensorBatch
from hpcopt.solvers.annealing.solver import Annealing, AnnealingConfig
from hpcopt.testing.problem import CLASSES, FEATURES

ENERGIES = (0.0, 0.7, 0.4, 2.0, 1.1, 0.2)


class Plain(nn.Module):
    """Its energy is the loss."""

    def energy(self, loss: Loss, batch: Any) -> float:
        return float(loss(self, batch))


class Ring(Plain):
    """A place on a ring of energies, at first 1, from which it moves to either side."""

    def __init__(self, energies=ENERGIES) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones((), dtype=torch.int64), requires_grad=False)
        self.energies, self._before = torch.tensor(energies, dtype=torch.float64), 0

    def forward(self) -> Tensor:
        return self.energies[self.place]

    def propose(self, draw: np.random.Generator) -> None:
        self._before = int(self.place)
        self.place.fill_((self._before + 2 * int(draw.integers(2)) - 1) % len(self.energies))

    def undo(self) -> None:
        self.place.fill_(self._before)


class Signs(Plain):
    """A linear classifier whose weights are -1 or 1."""

    def __init__(self) -> None:
        super().__init__()
        signs = torch.randint(2, (CLASSES, FEATURES), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        self.signs, self._place = nn.Parameter(signs), 0

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.signs.T

    def propose(self, draw: np.random.Generator) -> None:
        self._place = int(draw.integers(self.signs.numel()))
        self._flip()

    def undo(self) -> None:
        self._flip()

    @torch.no_grad()
    def _flip(self) -> None:
        self.signs.view(-1)[self._place].neg_()


def task(energies=ENERGIES) -> Task:
    nothing = TensorBatch({}, torch.zeros(1, dtype=torch.int64), 1)
    return Task(Ring(energies), lambda model, batch: model(), Samples(1, 1, lambda indices, whole: nothing))


def walk(config: AnnealingConfig, steps: int, ranks: int = 1, seed: int = 0, energies=ENERGIES):
    """Anneal a ring; gives each rank's (stats of steps, places of its chains by number after each step)."""

    def program(transport: Transport):
        solver = config.build(task(energies), Context(world=World(transport), steps=steps, run_seed=seed))
        stats, places = [], []
        for _ in range(steps):
            stats.append(solver.step(None))
            places.append({n: int(c["state"]["place"]) for n, c in chains(solver).items()})
        solver.gather()
        return solver, stats, places

    return run_ranks(ranks, program)


def chains(solver: Annealing) -> dict[int, dict]:
    return {int(number): state for number, state in solver.rank_state_dict()["chains"].items()}
