"""One block: its layers, its optimizer, and its term of the augmented Lagrangian.

Block t with layers f has the inputs z and a goal for its outputs, ``goal(f(z))``. Nothing outside this file
differentiates, and nothing in it sees another block's parameters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.exchange import Exchange
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.pipeline.cut import is_proximal
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.block_admm.goal import Goal, Match
from hpcopt.twice import DifferentiableTwice

Proximal = Callable[[Tensor, Tensor, float], Tensor]

MARGIN = 1.1  # a power iteration comes from below
FIRST_ITERATIONS, ITERATIONS = 20, 2


class Block:
    """Block t of T, on one rank or on the ranks of ``peers``, which see other samples and hold the same parameters."""

    def __init__(
        self,
        number: int,
        layers: nn.Sequential,
        optimizer: OptimizerConfig,
        peers: World,
        context: Context,
        curvature: float,
        *,
        extrapolate: bool = False,
    ) -> None:
        """``number`` is t; ``curvature`` is the squared norm of the Jacobian, 0 if it is to be estimated;
        ``extrapolate`` remembers the latest step of the parameters for ``forward``.
        """
        self.layers = layers
        self._peers = peers
        parameters = [p for p in layers.parameters() if p.requires_grad]
        seed = context.seed(f"exchange of block {number}")
        self._exchange = Exchange(
            peers, layers, context.required_exchange, broadcast=True, seed=seed, clock=context.clock
        )
        self._seed = context.seed(f"curvature of block {number}")
        self._config = optimizer
        self._optimizer = optimizer.build(parameters) if parameters else None
        self._fixed = curvature
        self._jacobian_square = curvature
        self._direction: Tensor | None = None
        self._latest = {n: torch.zeros_like(p) for n, p in layers.named_parameters()} if extrapolate else {}

    @torch.no_grad()
    def forward(self, z: Tensor, ahead: int = 0) -> Tensor:
        """Outputs for inputs z, without a graph; with the weights after ``ahead`` more steps like the latest."""
        weights = {n: p + ahead * self._latest[n] for n, p in self.layers.named_parameters()} if ahead else {}
        out: Tensor = functional_call(self.layers, weights, (z,))
        return out

    def pull(self, z: Tensor, anchor: Tensor, rho: float, goal: Goal, steps: int, *, backtrack: bool) -> Tensor:
        """Move the inputs towards the goal: ``steps`` prox-linear steps on ``goal(f(z)) + rho/2 |z - anchor|^2``.

        The penalty is minimised exactly, the goal by its linearisation with a bound L of its curvature::

            z <- (L z + rho anchor - grad goal) / (L + rho)

        With ``backtrack``, L is doubled until the goal lies below its quadratic model: then the sum of both terms never
        rises (for a goal with a Lipschitz gradient).

        Returns:
            The new inputs, a leaf without a graph.
        """
        if is_proximal(self.layers[0]):
            if not isinstance(goal, Match):
                raise JobError("the last block has no derivative; end the model with a linear layer")
            proximal: Proximal = self.layers[0].proximal  # type: ignore[assignment]
            return proximal(anchor, goal.target, goal.rho / rho)
        bound = goal.curvature * self._jacobian_square
        for _ in range(steps):
            z = z.detach().requires_grad_()
            value = goal(self.layers(z))
            (slope,) = torch.autograd.grad(value, z)
            z = z.detach()
            while True:
                moved = (bound * z + rho * anchor - slope) / (bound + rho)
                if not backtrack or self._below_model(z, moved, value.detach(), slope, bound, goal):
                    break
                bound *= 2
            z = moved
        return z

    @torch.no_grad()
    def _below_model(self, z: Tensor, moved: Tensor, value: Tensor, slope: Tensor, bound: float, goal: Goal) -> bool:
        """Whether the goal at ``moved`` is below its quadratic model; one answer for all peers. Collective."""
        step = moved - z
        model = value + (slope * step).sum() + 0.5 * bound * step.square().sum()
        excess, scale = self._peers.all_reduce(torch.stack([goal(self.layers(moved)) - model, value.abs()]).double())
        return bool(excess <= 1e-9 * scale)

    def begin(self, visits: int) -> None:
        """Make the gradients zero, before so many calls of ``learn``."""
        self._exchange.zero(backwards=visits)

    def learn(self, z: Tensor, goal: Goal, weight: float) -> float:
        """Add the gradient of the mean goal over all samples of the update, of which these are the part ``weight``.
        Collective on the last visit: over the peers; one all-reduce of the block's gradients.

        Returns:
            These samples' summand of the mean goal.
        """
        if self._optimizer is None:
            return 0.0
        loss = goal(self.layers(z.detach())) * (weight / len(z))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def update(self, learning_rate: float) -> None:
        """One optimizer step."""
        if self._optimizer is None:
            return
        self._exchange.finish()
        set_learning_rate(self._optimizer, learning_rate)
        before = {n: p.detach().clone() for n, p in self.layers.named_parameters() if n in self._latest}
        self._optimizer.step()
        self._latest = {n: self.layers.get_parameter(n).detach() - p for n, p in before.items()}

    def measure(self, z: Tensor, weight: float) -> None:
        """Estimate the largest squared norm of the Jacobian df/dz over the samples, by power iteration on each of them
        from a common direction, which is kept for the next time. Collective: over the peers.
        """
        if self._fixed or is_proximal(self.layers[0]):
            return
        rounds = ITERATIONS
        if self._direction is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._direction = torch.randn(z.shape[1:], generator=generator).to(z)
            rounds = FIRST_ITERATIONS
        v = self._direction.to(z.device).expand_as(z)
        z = z.detach().requires_grad_()
        with DifferentiableTwice():
            out = self.layers(z)
        probe = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, z, probe, create_graph=True)  # J^T probe: linear in the probe
        size = z.new_zeros(len(z))
        for _ in range(rounds):
            v = v / _norms(v).clamp_min(1e-30)
            (ahead,) = torch.autograd.grad(back, probe, v, retain_graph=True)  # J v
            (v,) = torch.autograd.grad(out, z, ahead, retain_graph=True)  # J^T J v
            size = _norms(v).reshape(-1)
        mean = self._peers.all_reduce((v / _norms(v).clamp_min(1e-30)).mean(0) * weight)
        largest = self._peers.all_reduce(size.max().reshape(1), "max")
        self._direction = mean
        self._jacobian_square = MARGIN * float(largest)

    def state_dict(self) -> Tree:
        """The optimizer's state, the latest step and the curvature; the parameters belong to the model's state."""
        optimizer = optimizer_state(self._optimizer) if self._optimizer else None
        curvature = {"direction": self._direction, "jacobian_square": self._jacobian_square}
        return {"optimizer": optimizer, "latest": self._latest, **curvature}

    def exchange_state_dict(self) -> Tree:
        """What this rank's exchange of gradients keeps."""
        return self._exchange.rank_state_dict()

    def load_state_dict(self, state: Tree, exchanges: Sequence[Tree]) -> None:
        """Restore what ``state_dict`` gave, and what the exchanges of all saved peers kept."""
        self._exchange.load_state_dict(exchanges)
        if self._optimizer:
            restore_optimizer(self._optimizer, state["optimizer"])
        self._direction, self._jacobian_square = state["direction"], state["jacobian_square"]
        for name in self._latest.keys() & state["latest"].keys():
            self._latest[name] = state["latest"][name].to(self._latest[name].device)


def _norms(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, shape (n, 1, ...)."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.view(-1, *[1] * (x.dim() - 1))
