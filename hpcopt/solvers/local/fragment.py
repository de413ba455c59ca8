"""Some of a model's parameters, whose changes travel together: sent at one step, landed at the same or a later one.

``send`` takes each rank's change since the last landing, ``delta_r = outer - own_r``, and starts an exchange of it.
``land`` waits for the ranks' mean, gives it to the outer optimizer as the gradient of the outer parameters, and moves
the rank's own ones there. The outer parameters are bit-equal on all ranks.

A rank's part in the mean is its share of the samples since its last sending. It travels, float64, beside the deltas, so
that a rank whose values are not finite can be left out, and all know which.

Where ranks can be lost, dense deltas that land at once go by ``PresentSums``: the mean is that of those present, with
their shares, and a rank that is late lands where the others do, without what it did since its last sending.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.world import World
from hpcopt.errors import DivergedError
from hpcopt.exchange import Exchange, ExchangeConfig, NativeConfig, RingConfig
from hpcopt.exchange.present import PresentSums
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.phases import PhaseClock
from hpcopt.pipeline.cut import dealt
from hpcopt.shapes.solver import Tree
from hpcopt.store.saved_parts import SavedParts

LEFT_OUT = -1.0  # as a rank's share


class Fragment:
    """Parameters, and buffers whose ranks' means are taken at the same time."""

    def __init__(
        self,
        world: World,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        outer: OptimizerConfig,
        exchange: ExchangeConfig,
        seed: int,
        clock: PhaseClock,
        at_once: bool = False,
        patience_s: float | None = None,
    ) -> None:
        """Begin with the outer parameters where the model's are. Collective.

        Args:
            parameters, buffers: the model's, by name; the same values on all ranks.
            outer: of the optimizer of the mean of deltas.
            exchange: of deltas.
            seed: of all that codecs draw.
            at_once: deltas land at the step at which they are sent.
            patience_s: of a round with ranks that are late; None: for ever.
        """
        self._world = world
        self.own = {**parameters, **buffers}
        self.outer = {name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
        self._means = {name: nn.Parameter(b.detach().clone()) for name, b in buffers.items()}
        self._shares = nn.Parameter(torch.zeros(world.size, dtype=torch.float64))
        self._optimizer = outer.build(self.outer.values())
        dense = (NativeConfig if isinstance(exchange, NativeConfig) else RingConfig)(overlap=exchange.overlap)
        told = [("shares of the ranks", self._shares), *self._means.items()]
        every = [*self.outer.values(), *(p for _, p in told)]
        self._present = PresentSums.of(world, every, exchange, clock, patience_s) if at_once else None
        self._deltas = self._told = None
        if self._present is None:
            self._deltas = Exchange(world, self.outer.items(), exchange, broadcast=False, seed=seed, clock=clock)
            self._told = Exchange(world, told, dense, broadcast=False, clock=clock)
        self._under_way = self._waiting = False

    @property
    def roll_call(self) -> RollCall | None:
        """Who is present in rounds; None where all must be."""
        return None if self._present is None else self._present.roll_call

    def stated(self) -> dict[Tensor, Tensor]:
        """What stands for each of the model's tensors: the outer parameters, the means of buffers."""
        stood = {**self.outer, **self._means}
        return {own: stood[name].detach() for name, own in self.own.items()}

    stood = stated  # all ranks have them

    def send(self, share: float | None, step: int) -> None:
        """Begin to exchange what this rank's values have become. Collective.

        Args:
            step: after so many.
            share: of the samples since the last sending, in any unit that all ranks have in common; None leaves the
                rank out.
        """
        factor = share or 0.0
        for name, outer in self.outer.items():
            outer.grad = torch.zeros_like(outer) if share is None else (outer - self.own[name]).detach() * factor
        for name, mean in self._means.items():
            mean.grad = torch.zeros_like(mean) if share is None else self.own[name].detach() * factor
        self._shares.grad = torch.zeros_like(self._shares)
        self._shares.grad[self._world.rank] = LEFT_OUT if share is None else share
        if self._present is not None:
            self._present.sum(step)
        for exchange in self._exchanges():
            exchange.start()
        self._under_way = self._waiting = True

    def collect(self) -> None:
        """Wait for what is under way; nothing changes yet. Collective."""
        if self._under_way:
            for exchange in self._exchanges():
                exchange.finish()
            self._under_way = False

    def land(self, keep: float) -> list[int]:
        """Let the outer optimizer step by the mean of the deltas that were sent, and move this rank's values there.
        Collective.

        Args:
            keep: share of a rank's own values that stays.

        Returns:
            The ranks that were left out.

        Raises:
            DivergedError: on all ranks: there was no finite delta.
        """
        self.collect()
        self._waiting = False
        shares = self._sum(self._shares)
        total = float(shares.clamp(min=0).sum())
        if total == 0:
            raise DivergedError("no rank's parameters are finite: lower the learning rate, or clip the gradient")
        for outer in self.outer.values():
            self._sum(outer).div_(total)
        self._optimizer.step()
        with torch.no_grad():
            for mean in self._means.values():
                mean.copy_(self._sum(mean) / total)
            self.reset(keep)
        return (shares == LEFT_OUT).nonzero().ravel().tolist()

    @torch.no_grad()
    def reset(self, keep: float = 0.0) -> None:
        """Move this rank's values to the stated ones, but for a share that stays."""
        for own, stated in self.stated().items():
            own.copy_(stated if not keep else keep * own + (1 - keep) * stated)

    def planned_bytes(self) -> int:
        """The most that this rank sends in a round."""
        if self._present is not None:
            return self._present.planned_bytes()
        return sum(exchange.planned_bytes() for exchange in self._exchanges())

    def plan(self) -> dict[str, str]:
        """How the deltas travel, for a person."""
        plan = {} if self._deltas is None else self._deltas.plan()
        return {what: text for what, text in plan.items() if what == "exchange"}

    def state_dict(self) -> Tree:
        """What is the same on all ranks, without the outer parameters: the optimizer, means of buffers, and the sums
        that have arrived and not landed.
        """
        sums = {name: self._sum(p) for name, p in self._named()} if self._waiting else {}
        means = {name: mean.detach() for name, mean in self._means.items()}
        return {"optimizer": optimizer_state(self._optimizer), "means": means, "sums": sums}

    def rank_state_dict(self) -> Tree:
        """This rank's own: what its codecs owe."""
        if self._deltas is None or self._told is None:
            return {}
        return {"deltas": self._deltas.rank_state_dict(), "told": self._told.rank_state_dict()}

    @torch.no_grad()
    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """Go on from both, once the model has the stated values."""
        restore_optimizer(self._optimizer, shared["optimizer"])
        for name, outer in self.outer.items():
            outer.copy_(self.own[name])
        for name, mean in self._means.items():
            mean.copy_(shared["means"][name])
        self._waiting = bool(shared["sums"])
        for name, p in self._named() if self._waiting else ():
            total = shared["sums"][name]
            p.grad = _as_many(total, self._world.size) if p is self._shares else total.clone()
        saved = SavedParts.of(parts)
        if self._deltas is not None and self._told is not None and "deltas" in saved[0]:
            self._deltas.load_state_dict(saved.under("deltas"))
            self._told.load_state_dict(saved.under("told"))

    def begin(self, saved: SavedParts) -> None:
        """With another number of ranks than saved the model is where all begin."""

    def _exchanges(self) -> list[Exchange]:
        return [exchange for exchange in (self._deltas, self._told) if exchange is not None]

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.outer.items(), *self._means.items(), ("shares of the ranks", self._shares)]

    def _sum(self, p: nn.Parameter) -> Tensor:
        assert p.grad is not None
        return p.grad


def _as_many(shares: Tensor, ranks: int) -> Tensor:
    """The shares that were saved; of another number of ranks, their sum, which is what counts."""
    if len(shares) == ranks:
        return shares.clone()
    held = torch.zeros(ranks, dtype=shares.dtype)
    held[0] = shares.clamp(min=0).sum()
    return held


def cut(parameters: Mapping[str, Tensor], parts: int) -> list[list[str]]:
    """Names in at most so many stretches, in their order, with nearly equal numbers of values; none is empty but of no
    parameters at all.
    """
    stretches: list[list[str]] = [[] for _ in range(parts)]
    for name, part in zip(parameters, dealt([p.numel() for p in parameters.values()], parts), strict=True):
        stretches[part].append(name)
    return [names for names in stretches if names] or [[]]
