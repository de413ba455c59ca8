"""One-hidden-layer ReLU networks by tensor initialisation and gradient descent (Zhang et al., arXiv:1806.07808).

Before the first step the weights are estimated from moments of all training samples
(``hpcopt.solvers.relu_network.moments``); from there on it is data parallelism, as the paper has it with all samples in
every step: ``[workload] batch`` as many as ``train``. From a start this close the error falls at a linear rate down to
what the noise leaves, about ``nu sqrt(d K log N / N)``.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcopt.errors import JobError
from hpcopt.families import OPTIMIZERS
from hpcopt.models.relu_student import ReluStudent
from hpcopt.optim import OptimizerConfig, SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.solver import SolverConfig, Task
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.data_parallel import DataParallel
from hpcopt.solvers.first_order import Synchronous
from hpcopt.solvers.relu_network.moments import weights_of_moments

PIECE = 8192  # samples that moments are taken of at once


class TensorInitConfig(SolverConfig, Synchronous):
    """Weights from moments of all samples, then gradient descent: for a relu_student of one layer."""

    name: Literal["tensor_init"] = "tensor_init"
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        SgdConfig(lr=0.5, momentum=0.0),
        description="the optimizer that every rank runs from the estimate on",
    )

    def build(self, task: Task, context: Context) -> "TensorInit":
        """Make the solver. Collective.

        Raises:
            JobError: the network is no ReLU layer of at most as many units as inputs, or the samples cannot be read by
                index.
        """
        return TensorInit(self, task, context)


class TensorInit(DataParallel):
    """The solver. Its first step reads all samples three times, and a run that goes on does not."""

    def __init__(self, config: TensorInitConfig, task: Task, context: Context) -> None:
        model, loss = task.model, task.loss
        if not isinstance(model, ReluStudent) or len(model.layers) != 1 or not isinstance(loss, OutputLoss):
            raise JobError(
                '[solver] name = "tensor_init" estimates the weights of one ReLU layer from Gaussian samples: use '
                '[workload] name = "teacher" with hidden = [K], or [solver] name = "data_parallel"'
            ).everywhere()
        units, inputs = model.layers[0].shape
        if units > inputs:
            raise JobError(
                f'[solver] name = "tensor_init" finds at most as many units as inputs, not {units} with {inputs}'
            ).everywhere()
        if task.samples is None:
            raise JobError(
                '[solver] name = "tensor_init" reads all samples by index, which these data lack'
            ).everywhere()
        self._student, self._inputs, self._samples, self._world = model, loss.inputs, task.samples, context.world
        self._generator, self._clock = context.generator("tensor method"), context.clock
        super().__init__(config, task, context)

    def step(self, batch: Any) -> StepStats:
        if self._step == 0:
            with self._clock("update"):
                self._estimate(self._samples)
        return super().step(batch)

    @torch.no_grad()
    def _estimate(self, samples: Samples) -> None:
        """Put weights from the moments in place. Collective: its sums, and rank 0's weights for all."""
        weights = self._student.layers[0]
        units, inputs = weights.shape

        def pieces() -> Iterator[tuple[Tensor, Tensor]]:
            mine = np.array_split(np.arange(samples.count), self._world.size)[self._world.rank]
            for start in range(0, len(mine), PIECE):
                batch = samples.at(mine[start : start + PIECE], samples.count)
                yield self._inputs(batch).double(), batch.tensors["targets"].double()

        found = weights_of_moments(self._world, pieces, inputs, units, self._generator)
        weights.copy_(self._world.broadcast(found.to(weights.dtype)) - self._student.added(weights).cpu())

    def plan(self, flops: float) -> dict[str, str]:
        units, inputs = self._student.layers[0].shape
        size = 1 + inputs + units * (units + 1) // 2
        values = 2 * (1 + inputs + inputs**2) + size * (size + 1) + units**4
        moments = f"of {self._samples.count:,} samples, before the first step: sums of {values:,} numbers"
        return {**super().plan(flops), "moments": moments}
