"""What a job hands to whatever it builds."""

from dataclasses import dataclass, field

import torch

from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError
from hpcopt.exchange import ExchangeConfig
from hpcopt.phases import PhaseClock
from hpcopt.seeds import EVERY_RANK, derive


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and for how long something runs.

    Attributes:
        world: the ranks.
        exchange: the ``[exchange]`` section: how gradients travel; None where the solver has no use for it.
        device: what this rank computes on.
        steps: of the whole run; None while nobody knows.
        clock: counts the phases of a step.
        run_seed: ``[run] seed``.
        virtual: the virtual ranks that a job runs on, for the same bits on any number of ranks; None: on the ranks.
    """

    world: World = field(default_factory=alone)
    exchange: ExchangeConfig | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    steps: int | None = None
    clock: PhaseClock = field(default_factory=PhaseClock)
    run_seed: int = 0
    virtual: VirtualRanks | None = None

    @property
    def required_exchange(self) -> ExchangeConfig:
        """``exchange``, for what cannot do without.

        Raises:
            JobError: on all ranks: there is none.
        """
        if self.exchange is None:
            raise JobError("this solver exchanges gradients: give an [exchange], as Context(exchange=...)").everywhere()
        return self.exchange

    @property
    def total_steps(self) -> int:
        """``steps``, for what cannot do without.

        Raises:
            JobError: on all ranks: nobody knows them.
        """
        if self.steps is None:
            raise JobError("the length of this run is not known: give [run] steps").everywhere()
        return self.steps

    def seed(self, purpose: str, rank: int = EVERY_RANK) -> int:
        """A seed of 63 bits for one purpose, such as "codec": from the run's seed, the same on all ranks unless the
        rank is given.
        """
        return derive(self.run_seed, 0, rank, purpose)

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers for one purpose, the same on all ranks."""
        return torch.Generator().manual_seed(self.seed(purpose))
