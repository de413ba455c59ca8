"""Outer parameters of each rank's own, which it mixes with a few neighbours' after every outer step: no rank waits for
all others.

NoLoCo's way (Kolehmainen et al. 2025, arXiv:2506.10911), with the outer parameters themselves mixed, as Push-Sum and
its kin do, in place of a term in the optimizer that draws two of them together.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.phases import PhaseClock
from hpcopt.shapes.solver import Tree
from hpcopt.solvers.mixing import MixingConfig, Mixture
from hpcopt.store.saved_parts import SavedParts


class Mixed:
    """All parameters of a model; what a ``Fragment`` does, with neighbours only. Buffers stay the rank's own."""

    def __init__(
        self,
        world: World,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        outer: OptimizerConfig,
        mixing: MixingConfig,
        seed: int,
        clock: PhaseClock,
    ) -> None:
        """Begin with the outer parameters where the model's are. Collective.

        Raises:
            JobError: on all ranks: a parameter is not of float32.
        """
        if any(p.dtype != torch.float32 for p in parameters.values()):
            raise JobError("mixing parameters with neighbours needs them to be of float32").everywhere()
        self._world, self._parameters, self._buffers = world, parameters, buffers
        self.own = {**parameters, **buffers}
        self._mixture = Mixture(mixing, world, self._flat(), seed, clock)
        self._outer = nn.Parameter(self._flat())
        self._optimizer = outer.build([self._outer])
        self._left_out = False

    @property
    def roll_call(self) -> RollCall | None:
        """Who is present in rounds; None where all must be."""
        return self._mixture.roll_call

    def stated(self) -> dict[Tensor, Tensor]:
        """The means over the ranks. Collective."""
        mean = self._mixture.mean(torch.empty_like(self._outer.detach()))
        stood: dict[Tensor, Tensor] = dict(zip(self._parameters.values(), self._pieces(mean), strict=True))
        for buffer in self._buffers.values():
            stood[buffer] = self._world.all_reduce(buffer.detach().double()).div_(self._world.size)
        return stood

    def stood(self) -> dict[Tensor, Tensor]:
        """This rank's values at the end of a round."""
        return {own: own.detach().clone() for own in self.own.values()}

    @torch.no_grad()
    def send(self, share: float | None, step: int) -> None:
        """Step by this rank's own delta, then mix. Collective: over its neighbours, or over those who are there.

        Args:
            share: None: this rank does not step.
            step: after so many.
        """
        self._left_out = share is None
        self._outer.copy_(self._mixture.x)
        if not self._left_out:
            self._outer.grad = self._mixture.estimate(torch.empty_like(self._outer)) - self._flat()
            self._optimizer.step()
        if not self._mixture.mix(self._outer.detach(), step, "gossip of a round of local steps"):
            self._optimizer.state.clear()  # how far it had come when the others went on does not matter

    def collect(self) -> None:
        """Nothing of a round is under way between two."""

    def land(self, keep: float) -> list[int]:
        """Move this rank's values to where its outer parameters are.

        Returns:
            This rank, if it did not step.
        """
        self.reset(keep)
        return [self._world.rank] if self._left_out else []

    @torch.no_grad()
    def reset(self, keep: float = 0.0) -> None:
        """Move this rank's parameters to its outer ones, but for a share that stays."""
        estimate = self._mixture.estimate(torch.empty_like(self._outer.detach()))
        for own, outer in zip(self._parameters.values(), self._pieces(estimate), strict=True):
            own.copy_(outer if not keep else own * keep + outer * (1 - keep))

    def planned_bytes(self) -> int:
        """That this rank sends in a round, on average."""
        return self._mixture.planned_bytes()

    def plan(self) -> dict[str, str]:
        """There is no exchange to tell of."""
        return {}

    def state_dict(self) -> Tree:
        """All is each rank's own."""
        return {}

    def rank_state_dict(self) -> Tree:
        """The outer parameters and their optimizer."""
        return {"mixing": self._mixture.rank_state_dict(), "optimizer": optimizer_state(self._optimizer)}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """Go on as saved; on another number of ranks from the means, which the model has."""
        saved = SavedParts.of(parts)
        restore_optimizer(self._optimizer, saved[self._world.rank % len(saved)]["optimizer"])
        self._mixture.load_state_dict(self._flat(), saved.under("mixing"))

    def begin(self, saved: SavedParts) -> None:
        """With another number of ranks than saved, go where all begin: to the means, those of buffers over ``saved``,
        the ranks' own values by name, where ranks may have been absent.
        """
        self.reset()
        for name, buffer in self._buffers.items() if self.roll_call is not None else ():
            buffer.copy_(torch.stack([own[name].to(buffer.device).double() for own in saved]).mean(0))

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self._parameters.values()])

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        pieces = torch.split(flat, [p.numel() for p in self._parameters.values()])
        return [piece.view_as(p) for piece, p in zip(pieces, self._parameters.values(), strict=True)]
