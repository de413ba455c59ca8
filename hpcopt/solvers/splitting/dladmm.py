"""dlADMM (Wang, Yu, Chen, Zhao 2019, arXiv:1905.13611).

For layers l = 1..L with weights W_l, b_l, pre-activations z_l and activations a_l, a_0 = X::

    sum_i loss(z_{L,i}, y_i) + rho/2 sum_{l<L} (|z_l - a_{l-1} W_l^T - b_l|^2 + |a_l - relu(z_l)|^2)
                 + u (z_L - a_{L-1} W_L^T - b_L) + rho/2 |z_L - a_{L-1} W_L^T - b_L|^2

Only the last linear map has a multiplier u; the others are penalised. A step visits every variable from the last layer
to the first, then from the first to the last, then u. W and a take a step on a quadratic bound found by backtracking
from the curvature theta, b and the hidden z are exact, z_L takes accelerated gradient steps (FISTA).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.splitting.serial import FullBatchSolver, SerialConfig, relu_step

OUTPUT_STEPS = 20


class DlAdmmConfig(SerialConfig):
    """dlADMM, with what its authors' code has; the loss is a sum over the samples."""

    name: Literal["dladmm"] = "dladmm"
    rho: float = Field(1e-6, gt=0, description="weight of the penalties, at the start")
    rho_cap: float = Field(0.1, gt=0, description="weight that it does not grow beyond")
    theta: float = Field(
        1.0, gt=0, description="curvature that the bounds of W and a start from, at the start; it grows as rho does"
    )
    init_std: float = Field(0.1, gt=0, description="standard deviation of the first weights")

    def build(self, task: Task, context: Context) -> "DlAdmm":
        """Make the solver."""
        return DlAdmm(self, task, context)


class DlAdmm(FullBatchSolver):
    """The solver."""

    def __init__(self, config: DlAdmmConfig, task: Task, context: Context) -> None:
        """Raises JobError: the model or the ranks do not suit the method."""
        super().__init__("dladmm", task, context, config.init_std, 0.0)
        self._config = config
        self._last = len(self.layers) - 1
        self._rho = config.rho

    @torch.no_grad()
    def step(self, batch: TensorBatch) -> StepStats:
        """Down the layers, up the layers, then the multiplier."""
        x = self.inputs(batch)
        if "z0" not in self.tensors:
            before, after = self.forward(x)
            self.tensors |= {f"z{i}": z for i, z in enumerate(before)} | {f"a{i}": a for i, a in enumerate(after[:-1])}
            self.tensors |= {"u": torch.zeros_like(before[-1]), "rho": x.new_tensor(self._rho)}
            self.tensors["costs"] = x.new_zeros(0)
        self._rho = float(self.tensors["rho"])
        for i in reversed(range(self._last + 1)):
            self._update_a(i)
            self._update_z(i, x, batch)
            self._update_b(i, x)
            self._update_w(i, x)
        for i in range(self._last + 1):
            self._update_w(i, x)
            self._update_b(i, x)
            self._update_z(i, x, batch)
            self._update_a(i)
        self.tensors["u"] = self.tensors["u"] + self._rho * self._gap(self._last, x)
        self._step += 1
        loss = float(self.loss(self.model, batch))
        self._grow_rho(loss)
        gap = self._gap(self._last, x).norm() / self.tensors[f"z{self._last}"].norm()
        return StepStats(loss, scalars={"residual": float(gap), "rho": self._rho})

    def _below(self, i: int, x: Tensor) -> Tensor:
        return self.tensors[f"a{i - 1}"] if i else x

    def _gap(self, i: int, x: Tensor) -> Tensor:
        mapped: Tensor = self.layers[i](self._below(i, x))
        return self.tensors[f"z{i}"] - mapped

    def _shift(self, i: int) -> Tensor | float:
        """The scaled multiplier of layer i's linear map."""
        return self.tensors["u"] / self._rho if i == self._last else 0.0

    def _update_w(self, i: int, x: Tensor) -> None:
        layer, below = self.layers[i], self._below(i, x)
        missed = -self._gap(i, x) - self._shift(i)
        slope = self._rho * missed.T @ below
        layer.weight.copy_(self._bounded_step(layer.weight, slope, below @ slope.T))

    def _update_b(self, i: int, x: Tensor) -> None:
        self.layers[i].bias.add_((self._gap(i, x) + self._shift(i)).mean(0))

    def _update_a(self, i: int) -> None:
        if i == self._last:
            return
        a, above = self.tensors[f"a{i}"], self.layers[i + 1].weight
        missed = -self._gap(i + 1, a) - self._shift(i + 1)
        slope = self._rho * (missed @ above + a - self.tensors[f"z{i}"].relu())
        self.tensors[f"a{i}"] = self._bounded_step(a, slope, torch.cat([slope @ above.T, slope], 1))

    def _bounded_step(self, v: Tensor, slope: Tensor, mapped_slope: Tensor) -> Tensor:
        """Minimise a quadratic that bounds rho/2 |A v - c|^2, where A maps the slope to ``mapped_slope``. Backtracking
        would double its curvature until it does; that power of two is known at once.
        """
        curvature = self._rho * float(mapped_slope.square().sum() / slope.square().sum().clamp_min(1e-38))
        first = self._config.theta * self._rho / self._config.rho
        doublings = max(0, math.ceil(math.log2(max(curvature / first, 1.0))))
        return v - slope / (first * 2.0**doublings)

    def _update_z(self, i: int, x: Tensor, batch: TensorBatch) -> None:
        mapped = self.layers[i](self._below(i, x))
        if i < self._last:
            self.tensors[f"z{i}"] = relu_step(mapped, 1.0, self.tensors[f"a{i}"], 1.0)
            return
        center = mapped - self.tensors["u"] / self._rho
        bound = self._rho + 0.5  # of cross-entropy
        z = point = self.tensors[f"z{i}"]
        momentum = 1.0
        for _ in range(OUTPUT_STEPS):
            new = point - (self._slope(point, batch) + self._rho * (point - center)) / bound
            grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            point = new + (momentum - 1) / grown * (new - z)
            z, momentum = new, grown
        self.tensors[f"z{i}"] = z

    def _slope(self, outputs: Tensor, batch: TensorBatch) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(len(batch) * self.loss.criterion(leaf, batch), leaf)
        return slope

    def _grow_rho(self, loss: float) -> None:
        """Ten times the penalty after three rises of the training loss in a row."""
        costs = torch.cat([self.tensors["costs"][-3:], self.tensors["rho"].new_tensor([loss])])
        if len(costs) == 4 and bool((costs.diff() > 0).all()):
            self.tensors["rho"] = (10 * self.tensors["rho"]).clamp_max(self._config.rho_cap)
            costs = costs[:0]
        self.tensors["costs"] = costs
