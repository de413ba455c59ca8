"""What the solvers of this folder share: one rank, and a state of plain tensors beside the model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcopt.errors import JobError, fitting
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree


class SerialConfig(SolverConfig):
    """A method for one rank."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()


class SerialSolver(Solver):
    """A solver on one rank.

    Attributes:
        tensors: state beside the model's, by name.
    """

    def __init__(self, name: str, task: Task, context: Context) -> None:
        """Raises JobError: there are several ranks, or the loss cannot be taken apart."""
        if context.world.size > 1:
            raise JobError(f'[solver] name = "{name}" runs on one rank, not on {context.world.size}').everywhere()
        if not isinstance(task.loss, OutputLoss):
            raise JobError(f"{name} needs a workload whose loss is a function of the model's outputs and the batch")
        self.name, self.model, self.loss = name, task.model, task.loss
        self.data_rank, self.data_size = 0, 1
        self.tensors: dict[str, Tensor] = {}
        self._step = 0

    def gather(self) -> None:
        """The one rank has it all."""

    def plan(self, flops: float) -> dict[str, str]:
        return {"parameters": f"{sum(p.numel() for p in self.model.parameters()):,}"}

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict(), "tensors": self.tensors}

    def rank_state_dict(self) -> Tree:
        return {}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            device = next(self.model.parameters()).device
            self.tensors = {n: t if n == "indices" else t.to(device) for n, t in shared["tensors"].items()}
            self._step = shared["step"]


class FullBatchSolver(SerialSolver):
    """A solver of dense layers with ReLU between them, that keeps variables for every training sample."""

    def __init__(self, name: str, task: Task, context: Context, init_std: float, init_bias: float) -> None:
        """Draw weights from N(0, init_std^2), as these methods do.

        Raises:
            JobError: the model is anything but Flatten, Linear and ReLU.
        """
        super().__init__(name, task, context)
        model = task.model
        layers = (
            [layer for layer in model if not isinstance(layer, nn.Flatten)] if isinstance(model, nn.Sequential) else []
        )
        self.layers: list[nn.Linear] = [layer for layer in layers[::2] if isinstance(layer, nn.Linear)]
        relus = [layer for layer in layers[1::2] if isinstance(layer, nn.ReLU)]
        if not self.layers or len(self.layers) + len(relus) != len(layers) or len(relus) != len(self.layers) - 1:
            raise JobError(f"{name} trains dense layers with ReLU between them, nothing else")
        generator = context.generator("first weights")
        for layer in self.layers:
            weight = torch.empty(layer.weight.shape, dtype=layer.weight.dtype)  # drawn alike for any device
            layer.weight.data.copy_(nn.init.normal_(weight, std=init_std, generator=generator))
            nn.init.constant_(layer.bias, init_bias)

    def inputs(self, batch: TensorBatch) -> Tensor:
        """The batch's inputs, shape (n, d).

        Raises:
            JobError: it is not the same whole data set as in the step before.
        """
        seen = self.tensors.setdefault("indices", batch.indices)
        if len(batch) != batch.global_size or not torch.equal(seen, batch.indices):
            raise JobError(f"{self.name} takes all training samples in one step: set [workload] batch to their number")
        return self.loss.inputs(batch).flatten(1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Every layer's outputs before and after its activation; the last has none."""
        before: list[Tensor] = []
        after: list[Tensor] = []
        for layer in self.layers:
            before.append(layer(after[-1] if after else x))
            after.append(before[-1].relu() if layer is not self.layers[-1] else before[-1])
        return before, after


def relu_step(center: Tensor, weight: float, above: Tensor, above_weight: float) -> Tensor:
    """Minimise ``weight/2 (z - center)^2 + above_weight/2 (above - relu(z))^2`` elementwise, by its two branches."""
    positive = ((weight * center + above_weight * above) / (weight + above_weight)).clamp_min(0)
    negative = center.clamp_max(0)
    cost = weight * (positive - center).square() + above_weight * (above - positive).square()
    other = weight * (negative - center).square() + above_weight * above.square()
    return torch.where(cost <= other, positive, negative)
