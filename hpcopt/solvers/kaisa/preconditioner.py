"""Kaisa: gradients in, natural gradients or steps out. ``kaisa.step()`` stands before ``optimizer.step()``."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hpcopt.comm.fixed_tree import Branches
from hpcopt.comm.fixed_tree import reduce_to_owners as reduce_branches
from hpcopt.comm.ragged import exchange, reduce_to_owners
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, JobError
from hpcopt.solvers.kaisa import checkpoint
from hpcopt.solvers.kaisa.arrangement import Arrangement
from hpcopt.solvers.kaisa.averages import Averages
from hpcopt.solvers.kaisa.cost import Forecast
from hpcopt.solvers.kaisa.damping import Trial, adapted
from hpcopt.solvers.kaisa.ekfac import BatchMoments, Ekfac
from hpcopt.solvers.kaisa.factors import Failures
from hpcopt.solvers.kaisa.gradients import Gradients
from hpcopt.solvers.kaisa.kl_shampoo import KlShampoo
from hpcopt.solvers.kaisa.layers.find import Layers
from hpcopt.solvers.kaisa.layers.matrix import Matrix
from hpcopt.solvers.kaisa.method import PerLayer
from hpcopt.solvers.kaisa.methods import chooser, made
from hpcopt.solvers.kaisa.moments import Moments
from hpcopt.solvers.kaisa.products import rounding
from hpcopt.solvers.kaisa.recorder import Recorder
from hpcopt.solvers.kaisa.refresh import Inverses, Refresher
from hpcopt.solvers.kaisa.settings import DTYPES, MOVING, KaisaSettings
from hpcopt.solvers.kaisa.targets import Distribution, Draws


class Kaisa:
    """K-FAC, Muon, SOAP or Shampoo over ranks, for a model whose gradients are already the same on all of them.

    Attributes:
        layers: what was found in the model; ``layers.skipped`` says what was left alone and why.
        plan: this rank's part.
        memory: its predicted bytes.
        steps: steps done.
        damping, factor_every, inverse_every: in use now; may be set at any time, the same on all ranks.
        ratio: rho of the last adaptation of the damping (``damping.py``).
        cosines: by layer, of the last step's preconditioned and raw gradients; 1 means that nothing was done.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        lr: float | Callable[[], float] = 1.0,
        averaged: bool = True,
        total_steps: int | None = None,
        broadcast: bool = True,
        seed: int = 0,
        virtual: VirtualRanks | None = None,
        **settings: Any,
    ) -> None:
        """Watch a model. Collective.

        Args:
            model: not to be changed in shape afterwards, nor to be moved or unfrozen.
            world: the ranks.
            lr: the inner optimizer's, for kl_clip.
            averaged: the global gradient is the mean of the ranks' own (as from DDP), not their sum.
            total_steps: of the run; by its end the settings named ``_final`` are reached.
            broadcast: start from rank 0's parameters; if not, it is an error that ranks' differ.
            seed: of all that is drawn at random: sampled targets, first subspaces.
            virtual: ranks whose statistics are told apart, by ``note_virtual_rank``, and summed to the same bits on any
                number of ranks.
            settings: of KaisaSettings.

        Raises:
            JobError: what is asked for does not go together, or no placement fits the memory budget.
            PeerError: the ranks' parameters differ.
        """
        self.settings = s = KaisaSettings(**settings)
        self._model, self._world, self._lr, self._averaged = model, world, lr, averaged
        self._total_steps = total_steps
        if total_steps is None and s.scheduled(0):
            raise JobError("settings named _final need total_steps").everywhere()
        self.layers = Layers(model, s.options(), s.skip, chooser(model, s))
        self._found = self.layers.found
        self._method = PerLayer(made(s, seed))
        self._arrangement = Arrangement(self._found, self._method, s, world.size)
        self.plan = self._arrangement.plan(world.rank)
        self.memory = self._arrangement.memory(self.plan)
        if s.method == "ekfac" and self.plan.placement.grid.columns > 1:
            raise JobError('method = "ekfac" needs fraction = 1: every rank looks at its own samples').everywhere()
        self.steps = 0
        self.damping, self.factor_every, self.inverse_every = s.damping, s.factor_every, s.inverse_every
        self.ratio = math.nan
        self._trial: Trial | None = None
        self._virtual, self._branches = virtual, Branches()
        self._make_parts(seed)
        world.start_alike(list(model.parameters()), broadcast)

    def _make_parts(self, seed: int) -> None:
        """What the plan leads to: buffers, and who works on them."""
        s, world, found, plan = self.settings, self._world, self._found, self.plan
        self._averages = Averages(found, plan.owned, self._arrangement.factor_dtype)
        self._inverses = Inverses(plan, self._arrangement.inverse_dtype, self._arrangement.device)
        parts = plan, self._averages, self._inverses
        self._refresher = Refresher(self._method, found, *parts, s.refresh_tolerance, s.inverse_lag, seed)
        self._carried = Moments(self._method, found, plan, self._inverses)
        self._gradients = Gradients(self._method, found, plan, self._inverses, self._carried, world, s)
        self.cosines = self._gradients.cosines
        first = world.rank if self._virtual is None else self._virtual.held[0]
        draws = self._draws = Draws(seed, first, lambda: self.steps) if s.fisher == "sampled" else None
        self._recorder = Recorder(self._model, self.layers, plan.sums, draws, lambda: self.factors_due)
        if self._arrangement.device.type != "cpu":
            self._recorder.products = partial(rounding, s.tf32)
        self._moments: BatchMoments | None = None
        if isinstance(ekfac := self._method.named("ekfac"), Ekfac):
            self._moments = BatchMoments(ekfac, found, self._inverses, plan.gradients)
            self._recorder.also = self._moments.record

    @property
    def whole(self) -> list[nn.Parameter]:
        """Parameters whose gradients become whole steps: for an inner optimizer that only multiplies by its rate, and
        decays.
        """
        return [p for layer in self._found if self._method.of(layer).whole for p in layer.parameters()]

    @property
    def factors_due(self) -> bool:
        """Whether the coming step refreshes the factors."""
        return self.steps % self.factor_every == 0

    @property
    def inverses_due(self) -> bool:
        """Whether the coming step refreshes the inverses."""
        return self.steps % self.inverse_every == 0 or not self._inverses.made

    @property
    def damping_due(self) -> bool:
        """Whether the coming step wants ``adapt_damping`` after it."""
        every = self.settings.damping_every
        return every > 0 and self.steps % every == every - 1

    @property
    def clipped(self) -> float:
        """The factor of KL clipping in the last step."""
        return self._gradients.clipped

    @property
    def failures(self) -> Failures:
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
            generator: of random numbers; by default one of its own for each step, rank and call, from ``seed``.
        """
        self._recorder.sample(outputs, distribution, terms or len(outputs), generator)

    def note_virtual_rank(self, virtual_rank: int, terms: float) -> None:
        """After the backward passes of a virtual rank of this rank's, in their order: what was recorded since the one
        before is its own.

        Args:
            terms: as for ``step``.
        """
        assert self._virtual is not None
        held = self._virtual.held
        if self.factors_due and self.plan.sums.numel:
            if virtual_rank == held[0]:  # of a step that was given up nothing stays
                self._branches = Branches()
            self._branches.add(range(virtual_rank, virtual_rank + 1), self._recorder.take(terms))
        if self._draws is not None:
            self._draws.rank = held[(virtual_rank + 1 - held[0]) % len(held)]

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
        self._recorder.follow()
        usable = self._gradients.usable()
        if self.factors_due:
            self._refresh_factors(terms, grad_scale, usable)
        self._refresh_inverses()
        if self.damping_due:
            self._trial = Trial.begin([p for p in self._model.parameters() if p.requires_grad])
        if self._inverses.made and usable:
            lr = self._lr() if callable(self._lr) else self._lr
            self._gradients.precondition(self.damping, lr, self.steps)
        self.steps += 1
        self._follow_schedule()

    def adapt_damping(self, before: float, after: float) -> None:
        """After the inner optimizer's step, if ``damping_due`` before it. Collective: one all-reduce of four numbers.

        Args:
            before: the loss of the step's batch with the parameters as they were: this rank's mean, or with
                ``averaged=False`` its summand of the global one. Evaluate within ``paused()``.
            after: the same with the parameters as they are now.
        """
        trial, self._trial = self._trial, None
        if trial is None:
            return
        share = self._world.size if self._averaged else 1
        self.ratio = trial.ratio(self._found, self._averages.of, self._world, before / share, after / share)
        s = self.settings
        factor = s.damping_decay**s.damping_every
        self.damping = adapted(self.damping, self.ratio, factor, (s.damping_min, s.damping_max))

    def _follow_schedule(self) -> None:
        if self._total_steps:
            done = min(1.0, self.steps / self._total_steps)
            for name, value in self.settings.scheduled(done).items():
                setattr(self, name, value)

    def _refresh_factors(self, terms: float | None, grad_scale: float, usable: bool) -> None:
        if usable:
            self._averages.add_gradients(self.settings.factor_decay, self._factors)
        if not self.plan.sums.numel:
            return
        scale = (terms or self._recorder.terms) / grad_scale**2 / (self._world.size if self._averaged else 1)
        with self._world.watch(f"sums of factors, step {self.steps}", self._world.ranks):
            own = self._summed_factors(scale)
        self._averages.add_sums(own, self.settings.factor_decay)
        if self._moments is not None:
            self._moments.average(self._world, scale, self.settings.factor_decay)

    def _factors(self, i: int, layer: Matrix, w: Tensor) -> tuple[Tensor, Tensor]:
        method = self._method.of(layer)
        if isinstance(method, KlShampoo):
            return method.factors(layer, self._inverses.of(i), w)
        return layer.factors_of(w, w)

    def _summed_factors(self, scale: float) -> Tensor:
        """Of all ranks, this rank's segment. Collective."""
        transport, lengths = self._world.transport, self.plan.sums.lengths
        if self._virtual is not None:
            branches, self._branches = self._branches, Branches()
            return reduce_branches(transport, self._virtual, branches, lengths)
        wire = DTYPES[self.settings.wire_dtype] if self.settings.wire_dtype != "float32" else None
        return reduce_to_owners(transport, self._recorder.take(scale), lengths, wire)

    def _refresh_inverses(self) -> None:
        due = self.inverses_due
        arrives = self._refresher.arrives(self.steps, due)
        if arrives:
            self._carried.leave()
        self._refresher.refresh(self.steps, due, self.damping)
        if arrives:
            self._spread_inverses()
            self._carried.enter()

    def _spread_inverses(self) -> None:
        flat, messages = self._inverses.flat, (self.plan.inverses_out, self.plan.inverses_in)
        outgoing, incoming = ([m.of(flat) for m in ms] for ms in messages)
        with self._world.watch(f"inverses, step {self.steps}", self._world.ranks):
            exchange(self._world.transport, outgoing, incoming)

    def remove(self) -> None:
        """Stop watching the model, for another ``Kaisa`` to be made for it."""
        self._recorder.remove()

    def forecasts(self) -> list[Forecast]:
        """What the memory-optimal, the half-way and the communication-optimal grid would cost."""
        return self._arrangement.forecasts()

    def describe(self) -> dict[str, str]:
        """The plan for a person."""
        return self._arrangement.describe(self.layers.skipped)

    def state_dict(self) -> dict[str, Any]:
        """What is the same on all ranks."""
        return {
            "steps": self.steps,
            "damping": self.damping,
            "factor_every": self.factor_every,
            "inverse_every": self.inverse_every,
            "ratio": self.ratio,
            "inverted": self._inverses.made,
            "inverses_come": self._refresher.due_step(),
            "settings": self.settings.model_dump(mode="json"),
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """Factors, inverses and moments of the layers that this rank owns, by name."""
        return checkpoint.rank_state(self._refresher, self._carried)

    def load_state_dict(self, shared: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
        """Restore from any number of ranks' parts, and go on under the settings of now: what was made under others is
        made anew.

        Raises:
            CheckpointError: a layer is missing or of another size.
        """
        now, then = self.settings, checkpoint.before(self.settings, shared.get("settings", {}))
        for name in MOVING:
            setattr(self, name, shared[name] if now.moving(name) == then.moving(name) else getattr(now, name))
        self.steps, self.ratio = shared["steps"], shared["ratio"]
        self._follow_schedule()
        kept = now.inverses(self.damping) == then.inverses(shared["damping"])
        try:
            checkpoint.restore(self._refresher, self._carried, parts, shared["inverses_come"], kept)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{checkpoint.changes(now, then)}") from error
        self._inverses.made = kept and shared["inverted"]
        self._recorder.forget()
        self._trial = None
