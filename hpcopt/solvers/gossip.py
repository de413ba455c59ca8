"""Stochastic gradient push, and its kin on undirected graphs: every rank steps on its own gradient and mixes its
parameters with a few neighbours' (Assran et al. 2019, arXiv:1811.10792, alg. 1).

With Push-Sum: ``x_i <- x_i - lr grad F_i(z_i)``; x and w are mixed; ``z_i = x_i / w_i``. The gradient is taken at z,
what the model holds; the optimizer moves x. No rank waits for all others, and the ranks' models differ while they
train; an evaluation is of their mean.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from hpcopt.errors import JobError, fitting
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.first_order import FirstOrder
from hpcopt.solvers.mixing import MixingConfig, Mixture, flatten
from hpcopt.solvers.own_steps import OwnSteps
from hpcopt.store.saved_parts import SavedParts


class GossipConfig(SolverConfig, FirstOrder, MixingConfig):
    """After every step of its own, each rank mixes its parameters with a few neighbours'. Nothing else is exchanged."""

    name: Literal["gossip"] = "gossip"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def build(self, task: Task, context: Context) -> "GossipSgd":
        """Make the solver. Collective.

        Raises:
            JobError: the graph's file does not fit the ranks, or the model is not of float32.
        """
        return GossipSgd(self, task, context)


class GossipSgd(Solver):
    """The solver."""

    def __init__(self, config: GossipConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model = model = task.model
        world = context.world
        self.data_rank, self.data_size = world.rank, world.size
        self._clock = context.clock
        for tensor in model.state_dict().values():
            world.broadcast(tensor)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for p in parameters):
            raise JobError('[solver] name = "gossip" needs float32 parameters').everywhere()
        self._z = flatten(parameters)
        self._mixture = Mixture(config, world, self._z.clone(), context.seed("gossip"), context.clock)
        self._own = OwnSteps(config, task, context)
        self.pipelined = config.tau > 0
        self._step = 0

    def step(self, batch: Batch) -> StepStats:
        self._mixture.estimate(self._z)
        total = self._own.backward(batch)
        with self._clock("update"):  # x moves by the gradient at z
            self._z.copy_(self._mixture.x)
            lr = self._own.update(self._step)
            self._mixture.x.copy_(self._z)
        self._mixture.mix(f"gossip of step {self._step}")
        self._step += 1
        return StepStats(total, lr)

    def gather(self) -> None:
        """Put the mean over the ranks into the model; the next step goes on from this rank's own. Collective."""
        self._mixture.mean(self._z)

    def plan(self, flops: float) -> dict[str, str]:
        return {
            "parameters": f"{self._z.numel():,}",
            "bytes a step": f"{self._mixture.planned_bytes():,} sent by each rank for the parameters",
        }

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        return {"mixing": self._mixture.rank_state_dict(), "optimizer": optimizer_state(self._own.optimizer)}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With another number of ranks than saved, all go on from the mean."""
        with fitting("the job's model or optimizer"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            restore_optimizer(self._own.optimizer, parts[self.data_rank % len(parts)]["optimizer"])
            self._mixture.load_state_dict(self._z, SavedParts.of(parts).under("mixing"))
            self._step = shared["step"]
