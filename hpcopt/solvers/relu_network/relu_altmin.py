"""ReLU networks by alternating minimisation (Jagatap and Hegde 2018, arXiv:1806.07863). There is nothing to tune.

With the weights of a layer come the patterns ``p_q = 1[X w_q > 0]`` of its activations. While they are held, the output
is linear in the weights, and so the best weights are a least-squares solution::

    B = [diag(p_1) X ... diag(p_k) X],   vec(W) = argmin |B w - y|_2          of least norm, if there are several

Then come new patterns. In the skip form the weights are what is added to the identity, and training begins at zero. A
deeper network takes its layers one after the other, from the first, each with all others and all patterns held; the
rows of B then hold what the layers above make of a unit, instead of p.

Every step solves for its batch: take ``[workload] batch`` as many as ``train``. Normal equations are summed over the
ranks, see ``hpcopt.solvers.relu_network.least_squares``.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from hpcopt.errors import JobError, fitting
from hpcopt.models.relu_student import ReluStudent
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.late import total
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.relu_network.least_squares import DIRECT, Products, least_squares


class ReluAltMinConfig(SolverConfig):
    """Activation patterns, then weights by least squares, in turns: for a relu_student. It has no settings."""

    name: Literal["relu_altmin"] = "relu_altmin"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def build(self, task: Task, context: Context) -> "ReluAltMin":
        """Make the solver. Collective.

        Raises:
            JobError: the network is no relu_student, or its loss is not one of outputs.
        """
        return ReluAltMin(task, context)


class ReluAltMin(Solver):
    """The solver. It keeps nothing but the weights."""

    def __init__(self, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        if not isinstance(task.model, ReluStudent) or not isinstance(task.loss, OutputLoss):
            raise JobError(
                '[solver] name = "relu_altmin" solves for the weights of ReLU layers whose units are added up: use '
                '[workload] name = "teacher"'
            ).everywhere()
        self.model: ReluStudent = task.model
        self._loss, self._world, self._clock = task.loss, context.world, context.clock
        self.data_rank, self.data_size = context.world.rank, context.world.size
        self._step = 0
        context.world.start_alike(list(self.model.parameters()), broadcast=True)

    @torch.no_grad()
    def step(self, batch: TensorBatch) -> StepStats:
        """Solve for each layer once. The loss is the one before."""
        x, y = self._loss.inputs(batch), batch.tensors["targets"].double()
        with self._clock("forward"):
            losses = [self._loss(self.model, batch)] if len(batch) else []
        for layer, weights in enumerate(self.model.layers):
            with self._clock("forward"):
                c, h = self.model.held(layer, x)
                rows = Products(c.double(), h.double())
                held = rows.times(self.model.added(weights).double().ravel())
            with self._clock("update"):
                weights.copy_(least_squares(self._world, rows, y - held).view(weights.shape))
        self._step += 1
        return StepStats(total(losses, batch.weight))

    def gather(self) -> None:
        """Every rank has it all."""

    def plan(self, flops: float) -> dict[str, str]:
        lines = {"parameters": f"{sum(w.numel() for w in self.model.layers):,}"}
        for layer, m in enumerate(w.numel() for w in self.model.layers):
            numbers = m * (m + 1) // 2 + 2 * m
            how = f"normal equations, {numbers:,} numbers a step" if m <= DIRECT else f"LSQR, {m + 1:,} an iteration"
            lines[f"layer {layer + 1}"] = f"{m:,} unknowns, by {how} summed over the ranks"
        return lines

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        return {}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            self._step = shared["step"]
