"""Local steps: every rank trains on its own, and now and then the ranks' changes are averaged.

DiLoCo (Douillard et al. 2023, arXiv:2311.08105): H steps of an inner optimizer on each rank, then one of an outer
optimizer on the mean of the changes, ``delta = outer - mean_r own_r``, from which all ranks go on. With fragments
(Streaming DiLoCo, arXiv:2501.18512) parts of the model do so in turn; with a delay of d steps a part's mean is used d
steps after it was sent, and travels while those steps are taken. The delay is in steps, so the bits do not depend on
the network. In a loop of one's own:

    local = LocalSteps(model, optimizer, LocalStepsConfig(every=30), world=connect(), exchange=RingConfig())
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        local.step()
    with local.stated():
        evaluate(model)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.world import World
from hpcopt.config import Config
from hpcopt.errors import DivergedError, fitting
from hpcopt.exchange import ExchangeConfig
from hpcopt.families import OPTIMIZERS
from hpcopt.optim import OptimizerConfig, SgdConfig
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.phases import PhaseClock
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.aside import Aside
from hpcopt.solvers.local.fragment import Fragment, cut
from hpcopt.solvers.local.mixed import Mixed
from hpcopt.solvers.local.pace import Pace
from hpcopt.solvers.mixing import MixingConfig
from hpcopt.store.saved_parts import SavedParts


class LocalStepsConfig(Config):
    """When the ranks' changes are averaged, and what is done with the mean."""

    every: int = Field(30, ge=1, description="steps of a round: H")
    every_at_end: int | None = Field(
        None, ge=1, description="steps of a round at the end of the run, to which they grow in a straight line"
    )
    wait_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="rounds of so few steps, up to every, as keep what ranks wait for below this share"
        " of the time, measured in the first four",
    )
    outer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        SgdConfig(lr=0.7, momentum=0.9, nesterov=True),
        description="optimizer that steps by the mean change; sgd with lr = 1 and momentum = 0: the plain mean",
    )
    fragments: int = Field(1, ge=1, description="parts of the model that travel in turn within a round")
    delay: int = Field(0, ge=0, description="steps between a part's sending and its landing")
    keep: float = Field(0.0, ge=0, lt=1, description="share of a rank's own values that stays when a part lands")
    gossip: MixingConfig | None = Field(
        None, description="mix outer parameters with a few neighbours, in place of a mean over all ranks"
    )
    patience_s: float | None = Field(
        None,
        ge=0,
        description="with [run] elastic: seconds that a round waits for the other ranks once the first is there; who"
        " comes later is left out of it, and begins anew from it; by default for ever",
    )
    not_finite: Literal["end", "leave_out"] = Field(
        "end", description="a rank whose parameters are not finite ends the job, or is left out and begins anew"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.outer.asks != {"gradient"} or "sums" not in self.outer.takes or self.outer.has_modes:
            raise ValueError(f'outer "{self.outer.name}" needs more than a mean change')
        if self.every_at_end is not None and self.every_at_end < self.every:
            raise ValueError(f"every_at_end = {self.every_at_end}: rounds may grow over a run, not shrink")
        if self.wait_share is not None and (self.every_at_end or self.fragments > 1 or self.delay or self.gossip):
            raise ValueError("wait_share measures whole rounds: leave out every_at_end, fragments, delay and gossip")
        if self.patience_s is not None and (self.fragments > 1 or self.delay or self.gossip):
            raise ValueError("patience_s is for whole rounds that land at once: leave out fragments, delay and gossip")
        if self.fragments > self.every:
            raise ValueError(f"fragments = {self.fragments} do not fit into a round of every = {self.every} steps")
        if self.delay >= self.every:
            raise ValueError(f"delay = {self.delay}: a part lands before it is sent again, after every = {self.every}")
        if self.gossip is not None and (self.fragments > 1 or self.delay):
            raise ValueError("with gossip all parameters go at once: leave out fragments and delay; gossip.tau delays")
        return self

    def length(self, step: int, steps: int | None) -> int:
        """Steps of a round that begins after so many steps of so many."""
        if self.every_at_end is None or not steps:
            return self.every
        return round(self.every + (self.every_at_end - self.every) * min(1.0, step / steps))


class LocalSteps:
    """Averages what ranks have become. ``model`` holds this rank's own parameters; ``stated`` shows the outer ones.

    Attributes:
        left_out: ranks that were left out when something last landed.
        pace: chooses the length of rounds, if that is not given.
        chosen: whether the last step chose it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: LocalStepsConfig,
        *,
        world: World,
        exchange: ExchangeConfig | None,
        steps: int | None = None,
        seed: int = 0,
        clock: PhaseClock | None = None,
    ) -> None:
        """Start from rank 0's parameters and buffers. Collective.

        Args:
            model: whose parameters with a gradient are averaged, and whose buffers of floats.
            optimizer: that moves them between; its state stays the rank's own.
            exchange: how deltas travel; None with gossip.
            steps: of the whole run: the last one ends a round.
            seed: of all that is drawn, the same on all ranks.
        """
        self._model, self._inner, self._config, self._world, self._steps = model, optimizer, config, world, steps
        world.start_alike(list(model.state_dict().values()), True)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kept = model.state_dict(keep_vars=True)
        floats = {name: b for name, b in model.named_buffers() if name in kept and b.is_floating_point()}
        self._other = [b for name, b in model.named_buffers() if name in kept and not b.is_floating_point()]
        self._parts: list[Fragment | Mixed] = []
        clock = clock or PhaseClock()
        stretches = cut(parameters, config.fragments)
        for index, names in enumerate(stretches):
            part = {name: parameters[name] for name in names}
            buffers = floats if index + 1 == len(stretches) else {}
            seed_of_part = derive(seed, index, EVERY_RANK, "fragment")
            self._parts.append(self._part(part, buffers, exchange, seed_of_part, clock))
        self._share = [0.0] * len(self._parts)  # of the samples since each part was sent, summed over steps
        self.pace = None if config.wait_share is None else Pace(config.wait_share, config.every)
        self._step = self._begin = 0
        self._length, self.chosen = self._next_length(), False
        self._pending: list[tuple[int, int]] = []  # step of landing, part; in this order
        self._aside = Aside()
        self.left_out: list[int] = []
        self.collect()

    def _part(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        exchange: ExchangeConfig | None,
        seed: int,
        clock: PhaseClock,
    ) -> Fragment | Mixed:
        config, world = self._config, self._world
        if config.gossip is not None:
            return Mixed(world, parameters, buffers, outer=config.outer, mixing=config.gossip, seed=seed, clock=clock)
        assert exchange is not None
        return Fragment(
            world,
            parameters,
            buffers,
            outer=config.outer,
            exchange=exchange,
            seed=seed,
            clock=clock,
            at_once=config.fragments == 1 and not config.delay,
            patience_s=config.patience_s,
        )

    @property
    def roll_call(self) -> RollCall | None:
        """Who is present in rounds; None where all must be."""
        return self._parts[0].roll_call

    def decided(self) -> bool:
        """Whether the round that this rank is in was decided without it: further steps up to its end are for
        nothing.
        """
        return self.roll_call is not None and self.roll_call.decided_after(self._step)

    def step(self, share: float = 1.0) -> bool:
        """Count a step of the inner optimizer, and do what is due after it. Collective, where something is.

        Args:
            share: of this rank's samples in the step's batch, in any unit that the ranks have in common.

        Returns:
            Whether something landed.

        Raises:
            DivergedError: on all ranks: a rank's parameters are not finite, and the config does not leave it out.
        """
        self.go_on()
        if self.pace is not None:
            self.pace.enter()
        self._step += 1
        self._share = [sum_so_far + share for sum_so_far in self._share]
        last = self._step == self._steps
        landed = last and self._land(self._step + self._config.delay)
        for part in range(len(self._parts)):
            if last or self._step == self._begin + -(-(part + 1) * self._length // len(self._parts)):
                self._send(part)
        landed |= self._land(self._step + self._config.delay * last)
        if self._step == self._begin + self._length:
            self.chosen = self.pace is not None and self.pace.leave(self._world)
            self._begin, self._length = self._step, self._next_length()
        return landed

    def _next_length(self) -> int:
        """Steps of the round that begins now."""
        return self._config.length(self._step, self._steps) if self.pace is None else self.pace.length

    def collect(self) -> None:
        """Wait for what is under way, which still lands when it should, and note the stated values, for
        ``state_dict``. Collective.
        """
        self._stated = {buffer: self._world.broadcast(buffer.clone()) for buffer in self._other}
        for part in self._parts:
            part.collect()
            self._stated |= part.stated()

    def stand(self) -> None:
        """Note the stated values at the end of a round, without the others; buffers of integers are this rank's."""
        self._stated = {buffer: buffer.clone() for buffer in self._other}
        for part in self._parts:
            self._stated |= part.stood()

    def gather(self) -> None:
        """Put the stated parameters and buffers into the model, until ``go_on``. Collective."""
        self.go_on()
        self.collect()
        self._aside.show(self._stated)

    def go_on(self) -> None:
        """Put this rank's own values back, if the stated ones are in the model."""
        self._aside.restore()

    @contextmanager
    def stated(self) -> Iterator[None]:
        """Within it, the model has the outer parameters and the means of buffers, the same on all ranks. Collective."""
        self.gather()
        try:
            yield
        finally:
            self.go_on()

    def planned_bytes(self) -> int:
        """The most that this rank sends in a round."""
        return sum(part.planned_bytes() for part in self._parts)

    def plan(self) -> dict[str, str]:
        """What a round will do, for a person: lines of (what, how much)."""
        config, round_bytes = self._config, self.planned_bytes()
        grows = f", {config.every_at_end} at the end" if config.every_at_end else ""
        grows += ", or fewer, as measured in the first" if self.pace is not None else ""
        parts = f", in {len(self._parts)} parts" if len(self._parts) > 1 else ""
        late = f", landing {config.delay} steps after they were sent" if config.delay else ""
        return {
            **self._parts[0].plan(),
            "round": f"{config.every} steps{grows}; changes travel once{parts}{late}",
            "bytes a round": f"{round_bytes:,} sent by each rank, {round_bytes / config.every:,.0f} a step",
        }

    def state_dict(self) -> Tree:
        """What is the same on all ranks, as of the last ``collect`` or ``gather``."""
        model = self._model.state_dict(keep_vars=True)
        return {
            "step": self._step,
            "round": [self._begin, self._length],
            "pending": list(self._pending),
            "model": {name: self._stated.get(own, own).detach() for name, own in model.items()},
            "parts": {str(index): part.state_dict() for index, part in enumerate(self._parts)},
            **({} if self.pace is None else {"pace": self.pace.state_dict()}),
        }

    def rank_state_dict(self) -> Tree:
        """This rank's own: its values of the model, its inner optimizer, its share of samples, what codecs owe."""
        own = {name: self._aside.own(x) for part in self._parts for name, x in part.own.items()}
        return {
            "own": own,
            "optimizer": optimizer_state(self._inner),
            "share": list(self._share),
            "parts": {str(index): part.rank_state_dict() for index, part in enumerate(self._parts)},
        }

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """Go on as saved. On another number of ranks, each goes on from the stated values, with the inner optimizer of
        old rank ``r % P``.
        """
        with fitting("the model, its optimizer or the settings of its local steps"), torch.no_grad():
            self._load(shared, SavedParts.of(parts))

    def _load(self, shared: Tree, saved: SavedParts) -> None:
        self._aside.forget()
        self._model.load_state_dict(shared["model"])
        own = saved[self._world.rank % len(saved)]
        restore_optimizer(self._inner, own["optimizer"])
        for index, part in enumerate(self._parts):
            part.load_state_dict(shared["parts"][str(index)], saved.under("parts", str(index)))
        self._stated = {x: x.detach().clone() for part in self._parts for x in part.own.values()}
        self._step, (self._begin, self._length) = shared["step"], shared["round"]
        self._pending = [(due, part) for due, part in shared["pending"]]
        if self.pace is not None and "pace" in shared:  # else what was saved had rounds of a given length
            self.pace.load_state_dict(shared["pace"])
        self._share = [0.0] * len(self._parts)
        if len(saved) == self._world.size:
            self._share = [float(share) for share in own["share"]]
            for part in self._parts:
                for name, x in part.own.items():
                    x.copy_(own["own"][name])
        else:
            for part in self._parts:
                part.begin(saved.under("own"))

    def _send(self, part: int) -> None:
        """Send one part's change, and begin anew if this rank's is not finite."""
        share, self._share[part] = self._share[part], 0.0
        finite = all(bool(own.detach().isfinite().all()) for own in self._parts[part].own.values())
        self._parts[part].send(share if finite else None, self._step)
        self._pending.append((self._step + self._config.delay, part))
        if not finite:
            for each in self._parts:
                each.reset()
            self._inner.state.clear()

    def _land(self, until: int) -> bool:
        """Land what is due at a step or before."""
        landed = False
        while self._pending and self._pending[0][0] <= until:
            _, part = self._pending.pop(0)
            absent = self.roll_call is not None and self._world.rank in self.roll_call.absent
            self.left_out, landed = self._parts[part].land(0.0 if absent else self._config.keep), True
            if absent:  # how far it had come when the others went on does not matter
                self._inner.state.clear()
            if self.left_out and self._config.not_finite == "end":
                error = DivergedError(
                    f"after step {self._step} the parameters of ranks {self.left_out} are not finite: lower the "
                    'learning rate, clip the gradient, or leave such ranks out with not_finite = "leave_out"'
                )
                error.on_every_rank = self._config.gossip is None
                raise error
        return landed
