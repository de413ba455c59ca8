"""DeepFacto (arXiv:2105.00339): a network learns features that a non-negative factorisation explains.

The model is f, an NMF layer with basis B, and g. Features, codes and both networks are trained together::

    min  gamma loss(g(S), y) + lam/2 |Z - S B|^2    so that  Z = f(x),  S >= 0,  B >= 0,  rows of B no longer than 1

by Block-ADMM with the multiplier u (divided by rho) of the one constraint. A batch:

1. S  <- projected gradient steps on ``gamma loss(g(S)) + lam/2 |f(x) + u - S B|^2``, from the label-free codes
2. Z  <- max(0, (lam S B + rho (f(x) + u)) / (lam + rho))
3. B  <- one HALS sweep on running sums of S^T S and S^T Z
4. f  <- one optimizer step on ``rho/2 |f(x) - Z + u|^2 + head loss(h(f(x)))``, h linear and trained with it;
   g  <- one on ``loss(g(S)) + loss(g(label-free S))``
5. u  <- u + f(x) - Z

From a random start the features collapse; so f is first trained plainly, under h, then B comes from an NMF of its
features. With ``head`` > 0 what h misses goes on training f, as a loss of f's own block; with 0 labels reach f through
the codes alone. At inference the codes see no label, and h is gone: the model is its own forward pass.

Over ranks the samples are shared out: gradients and the sums for B are added up, B is the same everywhere.
"""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import JobError, fitting
from hpcopt.exchange import Exchange
from hpcopt.families import OPTIMIZERS
from hpcopt.models.nmf import Nmf, codes, factorize, update_basis
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.block_admm.goal import Fit, Match
from hpcopt.solvers.block_admm.samples import SampleTable
from hpcopt.solvers.first_order import Scheduled
from hpcopt.store.saved_parts import SavedParts

RECENT = 32  # batches whose features the first basis is made from
HEAD_STEPS = 1000


class DeepFactoConfig(SolverConfig, Scheduled):
    """Block-ADMM for a model with one NMF layer."""

    name: Literal["deepfacto"] = "deepfacto"
    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        AdamWConfig(weight_decay=0), description="the optimizer of f and g"
    )
    plain: float = Field(0.4, ge=0, lt=1, description="fraction of the steps that train the features plainly at first")
    rho: float = Field(1.0, gt=0, description="weight of the features' constraint")
    fit: float = Field(1.0, gt=0, description="lam: weight of the factorisation's error")
    label: float = Field(10.0, ge=0, description="gamma: weight of the labels in the codes")
    head: float = Field(
        0.0, ge=0, description="weight of the plain head's loss in the features, when everything is trained together"
    )
    code_steps: int = Field(10, ge=1, description="projected gradient steps on a batch's codes")
    memory: float = Field(
        0.97, ge=0, lt=1, description="how much of the basis's running sums lasts from batch to batch"
    )
    sweeps: int = Field(30, ge=1, description="HALS sweeps of the first factorisation")
    criterion_curvature: float = Field(
        0.5, gt=0, description="largest second derivative of a sample's loss in the outputs; 1/2 for cross-entropy"
    )
    classifier_rate: float = Field(1.0, gt=0, description="learning rate of g as a multiple of that of f")

    def build(self, task: Task, context: Context) -> "DeepFacto":
        """Make the solver. Collective.

        Raises:
            JobError: the model has no NMF layer with layers on both sides, or its loss cannot be taken apart.
        """
        return DeepFacto(self, task, context)


class DeepFacto(Solver):
    """The solver."""

    def __init__(self, config: DeepFactoConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        model, loss, world, clock = task.model, task.loss, context.world, context.clock
        if not isinstance(loss, OutputLoss):
            raise JobError("DeepFacto needs a workload whose loss is a function of the model's outputs and the batch")
        self.model, self._loss, self._config, self._world, self._clock = model, loss, config, world, clock
        self.data_rank, self.data_size = world.rank, world.size
        self._f, self._nmf, self._g = _parts(model)
        classes = model(loss.example).shape[1]
        self._head = _dense(self._nmf.basis.shape[1], classes, context.generator("head")).to(self._nmf.basis.device)
        for tensor in model.state_dict().values():
            world.broadcast(tensor)
        trained = nn.ModuleDict({"f": self._f, "head": self._head, "g": self._g})
        self._exchange = Exchange(
            world, trained, context.required_exchange, broadcast=True, seed=context.seed("exchange"), clock=clock
        )
        self._optimizers = {
            "features": self._feature_optimizer(),
            "classifier": config.optimizer.build(self._g.parameters()),
        }
        self._recent: deque[Tensor] = deque(maxlen=RECENT)
        factors, features = self._nmf.basis.shape
        self._a, self._b = (torch.zeros(factors, n, device=self._nmf.basis.device) for n in (factors, features))
        self._multipliers = SampleTable((features,), self._nmf.basis.dtype, self._nmf.basis.device)
        self._seed = context.seed("factors")
        self._steps, self._step = context.total_steps, 0
        self._plain_steps = round(config.plain * self._steps)

    def step(self, batch: TensorBatch) -> StepStats:
        """Plain training of the features at first; then everything together."""
        x = self._loss.inputs(batch)
        if self._step == self._plain_steps:
            self._recent.append(x)
            self._factorize()
        self._exchange.zero()
        if self._step < self._plain_steps:
            self._recent.append(x)
            with self._clock("backward"):
                loss = self._loss.criterion(self._head(self._f(x)), batch) * batch.weight
                loss.backward()  # type: ignore[no-untyped-call]
            scalars = {}
        else:
            loss, error = self._joint(x, batch)
            scalars = {"reconstruction_error": error}
        self._exchange.finish()
        lr = self._config.learning_rate(self._step, self._steps)
        with self._clock("update"):
            for name, optimizer in self._optimizers.items():
                set_learning_rate(optimizer, lr * (self._config.classifier_rate if name == "classifier" else 1.0))
                optimizer.step()
            if self._step >= self._plain_steps:
                self._update_dual(x, batch)
        self._step += 1
        return StepStats(loss.item(), lr, scalars)

    def _joint(self, x: Tensor, batch: TensorBatch) -> tuple[Tensor, float]:
        """Steps 1 to 3, and the gradients of step 4; give the label-free loss and the reconstruction's error."""
        c, n = self._config, len(batch)
        with self._clock("forward"), torch.no_grad():
            out = self._f(x)
            self._u = self._multipliers.read(batch.indices) / c.rho
            free = codes(out, self._nmf.basis, self._nmf.steps)
            s = self._codes((out + self._u).clamp_min(0), free, batch)
            rebuilt = s @ self._nmf.basis
            self._z = ((c.fit * rebuilt + c.rho * (out + self._u)) / (c.fit + c.rho)).clamp_min(0)
            error = float((out - free @ self._nmf.basis).square().sum() / out.square().sum().clamp_min(1e-30))
        with self._clock("exchange"):
            for total, part in ((self._a, s.T @ s), (self._b, s.T @ self._z)):
                total.mul_(c.memory).add_(self._world.all_reduce(part.contiguous()))
        update_basis(self._nmf.basis, self._a, self._b)
        with self._clock("backward"):
            known, unseen = (self._loss.criterion(self._g(code), batch) for code in (s, free))
            features = self._f(x)
            goal = Match(self._z - self._u, c.rho)(features) / n
            plain = self._loss.criterion(self._head(features), batch)
            total_loss: Tensor = (goal + c.head * plain + known + unseen) * batch.weight
            total_loss.backward()  # type: ignore[no-untyped-call]
        return unseen.detach() * batch.weight, error

    def _codes(self, h: Tensor, start: Tensor, batch: TensorBatch) -> Tensor:
        """Codes that know the labels: projected gradient steps whose length bounds both terms' curvature."""
        c, basis = self._config, self._nmf.basis
        gram, right = basis @ basis.T, h @ basis.T
        weights = [p.detach() for p in self._g.parameters() if p.dim() == 2]
        slope_bound = float(torch.stack([torch.linalg.matrix_norm(w, 2) for w in weights]).prod()) ** 2
        curvature = c.fit * float(torch.linalg.matrix_norm(gram, 2)) + c.label * c.criterion_curvature * slope_bound
        fit = Fit(self._loss.criterion, batch, c.criterion_curvature)
        s = start
        for _ in range(c.code_steps):
            with torch.enable_grad():
                leaf = s.detach().requires_grad_()
                (pull,) = torch.autograd.grad(fit(self._g(leaf)), leaf)
            s = (s - (c.fit * (s @ gram - right) + c.label * pull) / curvature).clamp_min(0)
        return s

    @torch.no_grad()
    def _update_dual(self, x: Tensor, batch: TensorBatch) -> None:
        gap = self._f(x) - self._z
        self._multipliers.write(batch.indices, self._config.rho * (self._u + gap))

    def _factorize(self) -> None:
        """The first basis: rank 0's, from the features of its latest batches; the first g: what the throw-away head
        said of them. The features' optimizer starts anew: the gradients to come have another scale than those that it
        remembers, and Adam would take steps of many times its rate.
        """
        self._optimizers["features"] = self._feature_optimizer()
        with torch.no_grad():
            features = self._f(torch.cat(list(self._recent)))
            generator = torch.Generator().manual_seed(self._seed)
            s, basis = factorize(features, len(self._nmf.basis), self._config.sweeps, generator)
            self._nmf.basis.copy_(basis)
            told = self._head(features).softmax(1)
        parameters = list(self._g.parameters())
        optimizer = torch.optim.Adam(parameters, 0.01)
        for _ in range(HEAD_STEPS):
            missed = -(told * self._g(s).log_softmax(1)).sum(1).mean()
            for p, slope in zip(parameters, torch.autograd.grad(missed, parameters), strict=True):
                p.grad = slope
            optimizer.step()
        for tensor in [self._nmf.basis, *self._g.state_dict().values()]:
            self._world.broadcast(tensor)
        self._recent.clear()

    def _feature_optimizer(self) -> torch.optim.Optimizer:
        return self._config.optimizer.build([*self._f.parameters(), *self._head.parameters()])

    def gather(self) -> None:
        """Every rank has it all."""

    def plan(self, flops: float) -> dict[str, str]:
        factors, features = self._nmf.basis.shape
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "factors": f"{factors} of {features} features",
            "plain steps": f"{self._plain_steps:,}",
            **self._exchange.plan(),
        }

    def state_dict(self) -> Tree:
        return {
            "step": self._step,
            "ranks": self._world.size,
            "model": self.model.state_dict(),
            "head": self._head.state_dict(),
            "optimizers": {name: optimizer_state(optimizer) for name, optimizer in self._optimizers.items()},
            "sums": {"a": self._a, "b": self._b},
        }

    def rank_state_dict(self) -> Tree:
        return {
            "multipliers": self._multipliers.state_dict(),
            "recent": list(self._recent),
            "exchange": self._exchange.rank_state_dict(),
        }

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
                self._head.load_state_dict(shared["head"])
            for name, optimizer in self._optimizers.items():
                restore_optimizer(optimizer, shared["optimizers"][name])
            self._a, self._b = (shared["sums"][name].to(self._a.device) for name in ("a", "b"))
            self._exchange.load_state_dict(SavedParts.of(parts).under("exchange"))
            same = shared["ranks"] == self._world.size
            for part in [parts[self._world.rank]] if same else parts:
                self._multipliers.add_state_dict(part["multipliers"])
                if same:
                    self._recent.extend(x.to(self._a.device) for x in part["recent"])
            self._step = shared["step"]


def _dense(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A dense layer with torch's usual first weights, drawn from a generator."""
    layer = nn.Linear(inputs, outputs)
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


def _parts(model: nn.Module) -> tuple[nn.Sequential, Nmf, nn.Sequential]:
    """The model as f, NMF layer and g."""
    layers = list(model) if isinstance(model, nn.Sequential) else []
    at = [index for index, layer in enumerate(layers) if isinstance(layer, Nmf)]
    if len(at) != 1 or not 0 < at[0] < len(layers) - 1:
        raise JobError(
            'DeepFacto needs an nn.Sequential with one NMF layer inside, such as [workload.model] "factor_mlp"'
        )
    nmf = layers[at[0]]
    assert isinstance(nmf, Nmf)
    return nn.Sequential(*layers[: at[0]]), nmf, nn.Sequential(*layers[at[0] + 1 :])
