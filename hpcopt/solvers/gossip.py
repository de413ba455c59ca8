"""Stochastic gradient push, and its kin on undirected graphs: every rank steps on its own gradient and mixes its
parameters with a few neighbours' (Assran et al. 2019, arXiv:1811.10792, alg. 1).

With Push-Sum: ``x_i <- x_i - lr grad F_i(z_i)``; x and w are mixed; ``z_i = x_i / w_i``. The gradient is taken at z,
what the model holds; the optimizer moves x. No rank waits for all others, and the ranks' models differ while they
train; an evaluation is of their mean.

Where ranks can be lost, a round is over those present (``hpcopt.comm.receipts``): with who is not, nobody mixes. A rank
that was late stays where it was before its step. A new one begins, as all do then, from the mean of those who are left.
"""

from collections.abc import Sequence
from typing import Literal, SupportsFloat

import torch

from hpcopt.errors import JobError, fitting
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers import absences
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
        kept = model.state_dict(keep_vars=True)
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
        parameters = [p for p in model.parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for p in parameters):
            raise JobError('[solver] name = "gossip" needs float32 parameters').everywhere()
        self._z = flatten(parameters)
        self._mixture = Mixture(config, world, self._z.clone(), context.seed("gossip"), context.clock)
        self._own = OwnSteps(config, task, context)
        self.pipelined = config.tau > 0
        self.roll_call = self._mixture.roll_call
        self.lockstep = self.roll_call is None or self.roll_call.patience_s is None
        self._loss: SupportsFloat | None = None  # of the newest step for which this rank had one
        self._step = 0

    def step(self, batch: Batch) -> StepStats:
        lr = None
        if self.roll_call is None or not self.roll_call.decided_after(self._step):  # else this rank catches up
            self._mixture.estimate(self._z)
            self._loss = self._own.backward(batch)
            with self._clock("update"):  # x moves by the gradient at z
                self._z.copy_(self._mixture.x)
                lr = self._own.update(self._step)
        present = self._mixture.mix(self._z, self._step + 1, f"gossip of step {self._step}")
        if not present:  # how far it had come when the others went on does not matter
            self._own.optimizer.state.clear()
        self._step += 1
        return StepStats(self._loss, lr, **absences.told(self.roll_call))

    def gather(self) -> None:
        """Put the mean over the ranks into the model; the next step goes on from this rank's own. Collective."""
        self._mixture.mean(self._z)

    def stand(self) -> None:
        """What a rank stands for is its own."""

    def plan(self, flops: float) -> dict[str, str]:
        return {
            "parameters": f"{self._z.numel():,}",
            "bytes a step": f"{self._mixture.planned_bytes():,} sent by each rank for the parameters",
        }

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        return {
            "mixing": self._mixture.rank_state_dict(),
            "optimizer": optimizer_state(self._own.optimizer),
            "buffers": {name: buffer.detach() for name, buffer in self._buffers.items()},
        }

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With another number of ranks than saved, all go on from the mean, and rank r with the optimizer and the
        buffers of old rank ``r % P``.
        """
        own = parts[self.data_rank % len(parts)]
        with fitting("the job's model or optimizer"):
            with torch.no_grad():
                self.model.load_state_dict({**shared["model"], **own["buffers"]})
            restore_optimizer(self._own.optimizer, own["optimizer"])
            self._mixture.load_state_dict(self._z, SavedParts.of(parts).under("mixing"))
            self._step = shared["step"]
