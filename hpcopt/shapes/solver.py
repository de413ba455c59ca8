"""What the trainer knows of a solver, and what the two hand each other."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from hpcopt.comm.roll_call import RollCall
from hpcopt.config import Choice
from hpcopt.held import Held
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import Loss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.simulation import Simulation
from hpcopt.shapes.stats import StepStats

Tree = Any  # dicts, lists and tuples of tensors, numbers, strings, booleans and None: what a checkpoint holds


class Checkpointed(Protocol):
    """What a checkpoint is made of: a solver, or whatever somebody's own loop keeps.

    Attributes:
        optimizers: those whose steps alone change their parameters and their own state, so that these stay as they are
            until the next step; none, if nobody knows.
    """

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]: ...

    def gather(self) -> None:
        """Get ready, on all ranks, with nothing left under way. Collective."""

    def must_be_finite(self) -> Iterable[tuple[str, Tensor]]:
        """Those, by name, that are worth saving only if they are finite."""

    def state_dict(self) -> Tree:
        """The state that is the same on all ranks."""

    def rank_state_dict(self) -> Tree:
        """This rank's own state."""

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """Restore from ``state_dict`` and from every saved rank's ``rank_state_dict``, read on access; there may be
        more or fewer than now.

        Raises:
            CheckpointError: the state does not fit.
        """


class Solver(Held, ABC):
    """Owns a model's parameters and whatever the ranks must exchange to move them.

    Attributes:
        model: the whole model; parameters that other ranks own are as of the last ``gather``.
        data_rank, data_size: this rank takes the data_rank'th of data_size parts of every global batch. Ranks that hold
            different pieces of one model take the same part.
        lockstep: whether the ranks may sum something after each step. If not, they meet at evaluations, checkpoints and
            every few seconds only, after the same number of steps; in between a rank waits for others only where the
            solver does.
        optimizers: those whose steps alone change the model's parameters, and their own state; none, if something else
            changes them too.
        draws: whether it reads its samples itself, by index; ``step`` may then be given None.
        roll_call: who is present in its rounds, if it goes on over those; None: all ranks must be there.
        pipelined: whether batches are in flight between steps, which ``gather`` finishes: then it moves the training.
    """

    lockstep: bool = True
    optimizers: Sequence[torch.optim.Optimizer] = ()
    draws: bool = False
    pipelined: bool = False
    roll_call: RollCall | None = None
    model: nn.Module
    data_rank: int
    data_size: int

    @abstractmethod
    def step(self, batch: Any) -> StepStats:
        """Move the parameters by one global batch, of the kind that the workload gives. Collective."""

    @abstractmethod
    def gather(self) -> None:
        """Make ``model`` the same on all ranks, with nothing left under way: before an evaluation or a checkpoint.
        Collective.
        """

    def stand(self) -> None:
        """Get ready for ``state_dict`` after a round of ``roll_call``, without the others; by default as ``gather``,
        which must not communicate then.
        """
        self.gather()

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters, and what their optimizers keep."""
        yield from self.model.named_parameters()
        for optimizer in self.optimizers:
            yield from optimizer_tensors(optimizer)

    @abstractmethod
    def plan(self, flops: float) -> dict[str, str]:
        """What a step will do, for a person: lines of (what, how much).

        Args:
            flops: floating-point operations of this rank's forward and backward passes in a step.
        """

    @abstractmethod
    def state_dict(self) -> Tree:
        """The state that is the same on all ranks."""

    @abstractmethod
    def rank_state_dict(self) -> Tree:
        """This rank's own state."""

    @abstractmethod
    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """Restore from ``state_dict`` and from every saved rank's ``rank_state_dict``, read on access; there may be
        more or fewer than now.

        Raises:
            CheckpointError: the state does not fit.
        """


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What an optimizer keeps of its parameters, with a name for messages."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                yield f"{key} of the optimizer", value


@dataclass(frozen=True)
class Task:
    """What a solver knows of a workload.

    Attributes:
        model: the network, initialised the same on all ranks.
        loss: of a model and a batch: the mean over the batch's samples.
        samples: that can be read by index; None, if the data cannot.
        simulation: environments to act in, where the data come of it; None, if there are none.
    """

    model: nn.Module
    loss: Loss
    samples: Samples | None = None
    simulation: Simulation | None = None


class SolverConfig(Choice, ABC):
    """How a batch becomes new parameters across the ranks.

    Attributes:
        phases: that the solver's steps have beside those of ``hpcopt.phases``.
    """

    phases: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> frozenset[str]:
        """What an exchange may give (``ExchangeConfig.gives``) for this solver to work with it; empty, if it has no use
        for one.
        """
        return frozenset({"sums"})

    @property
    def asks(self) -> frozenset[str]:
        """What of the loss it takes: "gradient"; "product", which takes a second derivative; "variance"."""
        return frozenset({"gradient"})

    @property
    def tied_to_ranks(self) -> str:
        """What makes its bits depend on the number of ranks, so that it cannot run on virtual ranks; empty, if nothing
        does.
        """
        return "its steps depend on the number of ranks"

    @abstractmethod
    def build(self, task: Task, context: Context) -> Solver:
        """Make the solver, from rank 0's parameters. Collective.

        Raises:
            JobError: the model, its loss, the exchange or the ranks do not suit the solver.
        """
