"""Kaisa: gradients in, natural gradients out. ``kaisa.step()`` stands before ``optimizer.step()``."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.comm.ragged import exchange, reduce_to_owners
from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, JobError
from hpcopt.solvers.kaisa import inverse
from hpcopt.solvers.kaisa.averages import Averages
from hpcopt.solvers.kaisa.cost import Forecast, forecast, layer_cost
from hpcopt.solvers.kaisa.damping import Trial, adapted
from hpcopt.solvers.kaisa.ekfac import Ekfac, has_moments
from hpcopt.solvers.kaisa.layers.find import Layers
from hpcopt.solvers.kaisa.layers.layer import Layer
from hpcopt.solvers.kaisa.low_rank import LowRank
from hpcopt.solvers.kaisa.memory import Memory, Widths, choose, predict
from hpcopt.solvers.kaisa.placement import Grid, place
from hpcopt.solvers.kaisa.plan import Message, Plan, Sizes
from hpcopt.solvers.kaisa.recorder import Distribution, Recorder
from hpcopt.solvers.kaisa.refresh import Refresher
from hpcopt.solvers.kaisa.settings import DTYPES, KaisaSettings

METHODS: dict[str, Callable[[KaisaSettings], inverse.Method]] = {
    "cholesky": lambda s: inverse.Cholesky(),
    "low_rank": lambda s: LowRank(s.rank),
    "eigen": lambda s: inverse.Eigen(),
    "ekfac": lambda s: Ekfac(),
}


class Kaisa:
    """Distributed K-FAC for a model whose gradients are already the same on all ranks.

    Attributes:
        layers: what was found in the model; ``layers.skipped`` says what was left alone and why.
        plan: this rank's part.
        memory: its predicted bytes.
        steps: steps done.
        damping, factor_every, inverse_every: in use now; may be set at any time, the same on all ranks.
        ratio: rho of the last adaptation of the damping (``damping.py``).
        cosines: by layer, of the last step's preconditioned and raw gradients; 1 means that nothing was done.
        clipped: the factor of KL clipping in the last step.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        lr: float | Callable[[], float] = 1.0,
        averaged: bool = True,
        total_steps: int | None = None,
        **settings: Any,
    ) -> None:
        """Watch a model.

        Args:
            model: not to be changed in shape afterwards.
            world: the ranks.
            lr: the inner optimizer's, for kl_clip.
            averaged: the global gradient is the mean of the ranks' own (as from DDP), not their sum.
            total_steps: of the run; by its end the settings named ``_final`` are reached.
            settings: of KaisaSettings.

        Raises:
            JobError: what is asked for does not go together, or no placement fits the memory budget.
        """
        self.settings = s = KaisaSettings(**settings)
        self._world, self._lr, self._averaged, self._total_steps = world, lr, averaged, total_steps
        if total_steps is None and {s.damping_final, s.factor_every_final, s.inverse_every_final} != {None}:
            raise JobError("settings named _final need total_steps").everywhere()
        self.layers = Layers(model, s.options(), s.skip)
        self._found = self.layers.found
        self._method = METHODS[s.method](s)
        self.plan, self.memory = self._make_plan()
        if s.method == "ekfac" and self.plan.placement.grid.columns > 1:
            raise JobError('method = "ekfac" needs fraction = 1: every rank looks at its own samples').everywhere()
        self._averages = Averages(self._found, self.plan.owned, self._dtype(s.factor_dtype))
        self._inverses = torch.zeros(self.plan.inverses.numel, dtype=self._dtype(s.inverse_dtype))
        self._refresher = Refresher(self._method, self._found, self.plan, self._averages, s.refresh_tolerance)
        self._inverted = False
        self.steps = 0
        self.damping, self.factor_every, self.inverse_every = s.damping, s.factor_every, s.inverse_every
        self.ratio = math.nan
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._trial: Trial | None = None
        self.cosines = {layer.name: math.nan for layer in self._found}
        self.clipped = 1.0
        self._recorder = Recorder(
            model, self.layers, self.plan.sums, s.fisher == "sampled", lambda: model.training and self.factors_due
        )
        self._moments: Tensor | None = None
        if isinstance(self._method, Ekfac):
            self._recorder.also = self._add_moments

    @property
    def factors_due(self) -> bool:
        """Whether the coming step refreshes the factors."""
        return self.steps % self.factor_every == 0

    @property
    def inverses_due(self) -> bool:
        """Whether the coming step refreshes the inverses."""
        return self.steps % self.inverse_every == 0 or not self._inverted

    @property
    def damping_due(self) -> bool:
        """Whether the coming step wants ``adapt_damping`` after it."""
        every = self.settings.damping_every
        return every > 0 and self.steps % every == every - 1

    @property
    def failures(self) -> inverse.Failures:
        """What of this rank's factors did not invert at once."""
        return self._refresher.failures

    @property
    def skipped_refreshes(self) -> int:
        """Inverses of this rank that were kept because their factors had hardly changed."""
        return self._refresher.skipped

    @property
    def rejected(self) -> int:
        """Sums left out of this rank's averages because they were not finite."""
        return self._averages.rejected

    def sample(
        self, outputs: Tensor, distribution: Distribution, *, terms: float | None = None, generator: Any = None
    ) -> None:
        """With ``fisher = "sampled"``: before the loss's own backward, record that of targets drawn from the model.

        Args:
            outputs: of the model, with their graph; logits, or for "gaussian" means of unit variance.
            distribution: that the loss is the negative log-likelihood of.
            terms: over which the loss takes its mean; by default its samples.
            generator: of random numbers; by default torch's own.
        """
        self._recorder.sample(outputs, distribution, terms or len(outputs), generator)

    def paused(self) -> AbstractContextManager[None]:
        """Within it, nothing that the model does counts."""
        return self._recorder.paused()

    def step(self, terms: float | None = None, grad_scale: float = 1.0) -> None:
        """Replace the gradients of the known layers by preconditioned ones. Collective.

        Args:
            terms: over which the loss takes its mean: this rank's loss, or with ``averaged=False`` the global one. By
                default the samples that came through the model. In a language model with a mean over tokens: tokens.
            grad_scale: by which the backward passes' loss was multiplied (as by a GradScaler). The gradients
                themselves must have been unscaled.
        """
        if self.factors_due:
            self._refresh_factors(terms, grad_scale)
        self._refresh_inverses()
        if self.damping_due:
            self._trial = Trial.begin(self._parameters)
        if self._inverted:
            self._precondition()
        self.steps += 1
        self._follow_schedules()

    def adapt_damping(self, before: float, after: float) -> None:
        """After the inner optimizer's step, if ``damping_due`` before it. Collective: one all-reduce of four numbers.

        Args:
            before, after: the loss of the step's batch with the parameters as they were and as they are: this rank's
                mean, or with ``averaged=False`` its summand of the global one. Evaluate within ``paused()``.
        """
        trial, self._trial = self._trial, None
        if trial is None:
            return
        curvature = trial.curvature(self._found, self._averages.of)
        share = self._world.size if self._averaged else 1
        slope = trial.slope() / self._world.size  # the same on all ranks, but the sum is so to the bit
        sums = torch.tensor([slope, curvature, before / share, after / share], dtype=torch.float64)
        slope, curvature, before, after = self._world.all_reduce(sums).tolist()
        model = slope + curvature / 2
        self.ratio = (after - before) / model if model < 0 else -math.inf
        s = self.settings
        factor = s.damping_decay**s.damping_every
        self.damping = adapted(self.damping, self.ratio, factor, (s.damping_min, s.damping_max))

    def _follow_schedules(self) -> None:
        s = self.settings
        done = min(1.0, self.steps / self._total_steps) if self._total_steps else 0.0
        if s.damping_final is not None:
            self.damping = _between(s.damping, s.damping_final, done)
        if s.factor_every_final is not None:
            self.factor_every = round(_between(s.factor_every, s.factor_every_final, done))
        if s.inverse_every_final is not None:
            self.inverse_every = round(_between(s.inverse_every, s.inverse_every_final, done))

    def _refresh_factors(self, terms: float | None, grad_scale: float) -> None:
        scale = (terms or self._recorder.terms) / grad_scale**2 / (self._world.size if self._averaged else 1)
        flat = self._recorder.take(scale)
        plan, size = self.plan.sums, self._world.size
        if flat is None:
            flat = torch.zeros(plan.numel, dtype=self._found[0].dtype if self._found else torch.float32)
        wire = DTYPES[self.settings.wire_dtype] if self.settings.wire_dtype != "float32" else None
        with self._world.watch(f"sums of factors, step {self.steps}", self._world.ranks):
            own = reduce_to_owners(self._world.transport, flat, plan.lengths, wire) if size > 1 else flat
        start = plan.segments[self._world.rank].start
        pieces = {i: own[plan.pieces[i].start - start : plan.pieces[i].stop - start] for i in self.plan.owned}
        self._averages.add_sums(pieces, self.settings.factor_decay)
        self._refresh_moments(scale)

    def _add_moments(self, layer: Layer, x: Tensor, gradient: Tensor) -> None:
        """EKFAC: add one use of a layer to the second moments, laid out like the gradients."""
        if not (self._inverted and isinstance(self._method, Ekfac) and has_moments(layer)):
            return
        if self._moments is None:
            self._moments = torch.zeros(self.plan.gradients.numel, dtype=layer.dtype)
        i = self._found.index(layer)
        kept = self._inverses[self.plan.inverses.pieces[i]]
        self._moments[self.plan.gradients.pieces[i]] += self._method.second_moments(layer, kept, x, gradient)

    def _refresh_moments(self, scale: float) -> None:
        if not (self._inverted and isinstance(self._method, Ekfac)):
            return
        moments = self._moments
        if moments is None:
            moments = torch.zeros(self.plan.gradients.numel, dtype=self._found[0].dtype)
        self._world.all_reduce(moments.mul_(scale))
        self._moments = None
        for i, layer in enumerate(self._found):
            batch = moments[self.plan.gradients.pieces[i]]
            if has_moments(layer) and batch.any():
                self._method.add(layer, self._inverses[self.plan.inverses.pieces[i]], batch, self.settings.factor_decay)

    def _refresh_inverses(self) -> None:
        lag, refreshed = self.settings.inverse_lag, False
        if self.inverses_due and (lag == 0 or not self._inverted):
            self._refresher.now(self._inverses, self.damping)
            self._inverted = refreshed = True
        elif self.inverses_due:
            self._refresher.start(self._inverses, self.damping, self.steps + lag)
        refreshed = self._refresher.finish(self._inverses, self.steps) or refreshed
        if refreshed:
            self._exchange(self._inverses, self.plan.inverses_out, self.plan.inverses_in)

    def _precondition(self) -> None:
        squares = [f.matrices * f.size**2 for layer in self._found for f in (layer.a, layer.g) if f.size > 1]
        self._method.scratch = self._inverses.new_empty(max(squares, default=0))
        self._replace_gradients()
        self._method.scratch = None

    def _replace_gradients(self) -> None:
        used = [i for i, layer in enumerate(self._found) if _has_gradients(layer)]
        sent = self._spread(used) if self.plan.placement.grid.columns > 1 else None
        preconditioned, dots = {}, []
        for i in used:  # each layer's gradient is looked at while it is still in the cache
            w = self._found[i].gradient().to(self._found[i].dtype)
            p = self._preconditioned(i, w) if sent is None else sent[self.plan.gradients.pieces[i]].view(w.shape)
            flat_p, flat_w = p.flatten(), w.flatten()
            dots += [torch.dot(flat_p, flat_w), torch.dot(flat_p, flat_p), torch.dot(flat_w, flat_w)]
            preconditioned[i] = p
        values = torch.stack(dots).double().view(-1, 3) if dots else torch.zeros(0, 3)
        if not torch.isfinite(values).all():
            return
        cosines = values[:, 0] / (values[:, 1] * values[:, 2]).sqrt().clamp(min=1e-30)
        self.cosines.update(zip((self._found[i].name for i in used), cosines.tolist(), strict=True))
        self.clipped = self._clip(float(values[:, 0].sum()))
        for i, p in preconditioned.items():
            self._found[i].set_gradient(p, self.clipped)

    def _preconditioned(self, i: int, w: Tensor) -> Tensor:
        p = self._method.apply(self._found[i], self._inverses[self.plan.inverses.pieces[i]], w, self.damping)
        return p * (w.norm() / p.norm().clamp(min=torch.finfo(p.dtype).tiny)) if self.settings.graft else p

    def _spread(self, used: Sequence[int]) -> Tensor:
        """The preconditioned gradients of all layers, flat: of the own column computed, the others' received."""
        flat = torch.zeros(self.plan.gradients.numel, dtype=self._found[0].dtype if self._found else torch.float32)
        for i in self.plan.worked:
            if i in used:
                w = self._found[i].gradient().to(flat.dtype)
                flat[self.plan.gradients.pieces[i]].view(w.shape).copy_(self._preconditioned(i, w))
        self._exchange(flat, self.plan.gradients_out, self.plan.gradients_in)
        return flat

    def _clip(self, product: float) -> float:
        """The factor of KL clipping; ``product`` is <P, gradient> over all layers, lr^2 of which is the divergence."""
        clip = self.settings.kl_clip
        lr = self._lr() if callable(self._lr) else self._lr
        if clip is None or product * lr**2 <= clip:
            return 1.0
        return float((clip / (product * lr**2)) ** 0.5)

    def _exchange(self, flat: Tensor, outgoing: Sequence[Message], incoming: Sequence[Message]) -> None:
        pairs = [[(flat[m.start : m.stop], m.peer) for m in messages] for messages in (outgoing, incoming)]
        what = "inverses" if flat is self._inverses else "preconditioned gradients"
        with self._world.watch(f"{what}, step {self.steps}", self._world.ranks):
            exchange(self._world.transport, pairs[0], pairs[1])

    def _dtype(self, name: str) -> torch.dtype | None:
        """A settings' dtype; float32 stands for the layers' own."""
        return DTYPES[name] if name != "float32" or not self._found else self._found[0].dtype

    def _make_plan(self) -> tuple[Plan, Memory]:
        s, layers = self.settings, self._found
        widths = self._widths = Widths(
            layers[0].dtype.itemsize if layers else 4,
            (self._dtype(s.factor_dtype) or torch.float32).itemsize,
            (self._dtype(s.inverse_dtype) or torch.float32).itemsize,
            layers[0].dtype.itemsize if layers else 4,
        )
        sizes = self._sizes = [self._size(layer) for layer in layers]
        costs = self._costs = [layer_cost(layer, self._method, widths, s) for layer in layers]
        if s.memory_budget is not None:
            placement, _ = choose(costs, sizes, self._world.size, widths, s.memory_budget)
        else:
            placement = place(costs, Grid.of_fraction(self._world.size, s.fraction))
        plan = Plan(placement, sizes, self._world.rank)
        return plan, predict(plan, widths)

    def _size(self, layer: Layer) -> Sizes:
        factors = (layer.a, layer.g)
        inverting = self._method.squares * max(f.matrices * f.size**2 for f in factors)
        return Sizes(layer.a.numel + layer.g.numel + 1, self._method.numel(layer), layer.numel, inverting)

    def forecasts(self) -> list[Forecast]:
        """What the memory-optimal, the half-way and the communication-optimal grid would cost."""
        size = self._world.size
        grids = dict.fromkeys(Grid.of_fraction(size, fraction) for fraction in (1 / size, 0.5, 1.0))
        return [forecast(grid, self._costs, self._sizes, self._widths, self.settings) for grid in grids]

    def describe(self) -> dict[str, str]:
        """The plan for a person."""
        grid = self.plan.placement.grid
        ranks = [Plan(self.plan.placement, self._sizes, rank) for rank in range(grid.size)]
        memory = [predict(plan, self._widths) for plan in ranks]
        names = [layer.name for layer in self._found]
        return {
            "K-FAC layers": f"{len(names)} preconditioned, {len(self.layers.skipped)} not: "
            + (", ".join(f"{name} ({why})" for name, why in self.layers.skipped.items()) or "none"),
            "K-FAC grid": f"fraction {grid.fraction:.3g}\n{self.plan.placement.text()}",
            "K-FAC memory": f"{max(m.held_bytes for m in memory):,} bytes kept on the fullest rank, "
            f"{max(m.passing_bytes for m in memory):,} more in passing",
            "K-FAC rank 0": "\n".join(ranks[0].lines(names, self._widths.sums)),
        }

    def state_dict(self) -> dict[str, Any]:
        """What is the same on all ranks."""
        return {
            "steps": self.steps,
            "damping": self.damping,
            "factor_every": self.factor_every,
            "inverse_every": self.inverse_every,
            "ratio": self.ratio,
            "inverted": self._inverted,
            "inverses_come": self._refresher.due_step(),
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """Factors and inverses of the layers that this rank owns, by name."""
        state = {}
        for i in self.plan.owned:
            average = self._averages.of[i]
            state[self._found[i].name] = {
                "a": average.a,
                "g": average.g,
                "updates": average.updates,
                "inverse": self._inverses[self.plan.inverses.pieces[i]],
                **self._refresher.state(i),
            }
        return state

    def load_state_dict(self, shared: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
        """Restore from any number of ranks' parts.

        Raises:
            CheckpointError: a layer is missing or of another size.
        """
        own: dict[int, dict[str, Any]] = {}
        missing = {self._found[i].name for i in (*self.plan.owned, *self.plan.worked)}
        for part in parts:
            for i in range(len(self._found)):
                entry = part.get(self._found[i].name)
                if entry is not None:
                    self._restore(i, entry)
                    missing.discard(self._found[i].name)
                    if i in self._averages.of:
                        own[i] = entry
        if missing:
            raise CheckpointError(f"the checkpoint has no K-FAC factors of {', '.join(sorted(missing))}")
        self.steps, self.damping, self._inverted = shared["steps"], shared["damping"], shared["inverted"]
        self.factor_every, self.inverse_every = shared["factor_every"], shared["inverse_every"]
        self.ratio = shared["ratio"]
        self._refresher.restore(own, shared["inverses_come"], self._inverses)

    def _restore(self, i: int, entry: dict[str, Any]) -> None:
        try:
            if i in self._averages.of:
                average = self._averages.of[i]
                average.a.copy_(entry["a"])
                average.g.copy_(entry["g"])
                average.updates = int(entry["updates"])
            if i in self.plan.inverses.pieces:
                self._inverses[self.plan.inverses.pieces[i]].copy_(entry["inverse"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the factors of {self._found[i].name} do not fit this job: {error}") from error


def _between(first: float, final: float, done: float) -> float:
    """Geometrically, from first at done = 0 to final at 1."""
    return float(first * (final / first) ** done)


def _has_gradients(layer: Layer) -> bool:
    return all(p.grad is not None for p in layer.parameters())
