"""Block coordinate descent by three-splitting (Zeng, Lau, Lin, Yao 2019, arXiv:1803.00225).

For layers l = 1..N with weights W_l, b_l, inputs V_{l-1}, pre-activations U_l and V_0 = X, the squared loss and
penalties::

    1/2 |V_N - Y|^2 + gamma/2 sum_l |V_l - relu(U_l)|^2 + rho/2 sum_l |U_l - V_{l-1} W_l^T - b_l|^2

are minimised over one variable after the other, from the last layer to the first, each in closed form and, where the
method asks for it, with a proximal term alpha/2 |. - its old value|^2. A step is one such pass over all samples. The
targets Y are one-hot labels: the last layer's outputs are not logits, but their largest is the class.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hpcopt.errors import JobError
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.splitting.serial import FullBatchSolver, SerialConfig, relu_step


class BcdConfig(SerialConfig):
    """Block coordinate descent by three-splitting, as published."""

    name: Literal["bcd"] = "bcd"
    gamma: float = Field(1.0, gt=0, description="weight of the activations' penalty")
    rho: float = Field(1.0, gt=0, description="weight of the linear maps' penalty")
    alpha: float = Field(5.0, gt=0, description="weight of the proximal terms")
    init_std: float = Field(0.01, gt=0, description="standard deviation of the first weights")
    init_bias: float = Field(0.1, description="the first biases")

    def build(self, task: Task, context: Context) -> "Bcd":
        """Make the solver."""
        return Bcd(self, task, context)


class Bcd(FullBatchSolver):
    """The solver."""

    def __init__(self, config: BcdConfig, task: Task, context: Context) -> None:
        """Raises JobError: the model or the ranks do not suit the method."""
        super().__init__("bcd", task, context, config.init_std, config.init_bias)
        self._config = config
        self._gram: Tensor | None = None

    @torch.no_grad()
    def step(self, batch: TensorBatch) -> StepStats:
        """One pass from the last layer to the first."""
        x = self.inputs(batch)
        if "U0" not in self.tensors:
            before, after = self.forward(x)
            self.tensors |= {f"U{i}": u for i, u in enumerate(before)} | {f"V{i}": v for i, v in enumerate(after)}
        last = len(self.layers) - 1
        for i in reversed(range(last + 1)):
            below = self.tensors[f"V{i - 1}"] if i else x
            if i == last:
                self._update_outputs(i, below, self._targets(batch))
            else:
                self._update_hidden(i, below)
            self._update_weights(i, below)
        self._step += 1
        loss = float(self.loss(self.model, batch))
        return StepStats(loss, scalars={"objective": self.objective(x, self._targets(batch))})

    def _targets(self, batch: TensorBatch) -> Tensor:
        if "labels" not in batch.tensors:
            raise JobError("bcd needs a workload with class labels")
        return F.one_hot(batch.tensors["labels"], self.layers[-1].out_features).to(self.layers[-1].weight.dtype)

    def _update_outputs(self, i: int, below: Tensor, targets: Tensor) -> None:
        c, v, u = self._config, self.tensors[f"V{i}"], self.tensors[f"U{i}"]
        v = (targets + c.gamma * u + c.alpha * v) / (1 + c.gamma + c.alpha)
        self.tensors[f"V{i}"] = v
        self.tensors[f"U{i}"] = (c.gamma * v + c.rho * self.layers[i](below)) / (c.gamma + c.rho)

    def _update_hidden(self, i: int, below: Tensor) -> None:
        """V from a linear system of the layer's width, then U by its two branches."""
        c, above = self._config, self.layers[i + 1]
        u, weight = self.tensors[f"U{i}"], above.weight
        system = c.rho * weight.T @ weight + c.gamma * torch.eye(weight.shape[1]).to(weight)
        right = c.rho * (self.tensors[f"U{i + 1}"] - above.bias) @ weight + c.gamma * u.relu()
        v = torch.linalg.solve(system, right.T).T.contiguous()
        self.tensors[f"V{i}"] = v
        center = (c.rho * self.layers[i](below) + c.alpha * u) / (c.rho + c.alpha)
        self.tensors[f"U{i}"] = relu_step(center, c.rho + c.alpha, v, c.gamma)

    def _update_weights(self, i: int, below: Tensor) -> None:
        """Least squares, held near the old weights; the bias is a weight of a constant input."""
        c, layer = self._config, self.layers[i]
        inputs = torch.cat([below, below.new_ones(len(below), 1)], 1)
        old = torch.cat([layer.weight, layer.bias[:, None]], 1)
        gram = inputs.T @ inputs if i or self._gram is None else self._gram
        self._gram = self._gram if i else gram  # of the data, which stay
        system = c.rho * gram + c.alpha * torch.eye(inputs.shape[1]).to(inputs)
        new = torch.linalg.solve(system, (c.rho * self.tensors[f"U{i}"].T @ inputs + c.alpha * old).T).T
        layer.weight.copy_(new[:, :-1])
        layer.bias.copy_(new[:, -1])

    @torch.no_grad()
    def objective(self, x: Tensor, targets: Tensor) -> float:
        """The function that every update lowers."""
        c, last = self._config, len(self.layers) - 1
        total = 0.5 * (self.tensors[f"V{last}"] - targets).square().sum()
        for i, layer in enumerate(self.layers):
            u, v = self.tensors[f"U{i}"], self.tensors[f"V{i}"]
            below = self.tensors[f"V{i - 1}"] if i else x
            total += 0.5 * c.gamma * (v - (u if i == last else u.relu())).square().sum()
            total += 0.5 * c.rho * (u - layer(below)).square().sum()
        return float(total)
