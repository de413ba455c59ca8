"""What the trainer knows of a solver, and what the two hand each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpcopt.exchange.choices import Choices

Tree = Any  # dicts, lists and tuples of tensors, numbers, strings, booleans and None: what a checkpoint holds


@dataclass(frozen=True)
class Batch:
    """This rank's samples of one global batch.

    Attributes:
        tensors: arrays by name, each with the samples along its first dimension.
        indices: which samples of the data set these are, shape (n,), int64.
        global_size: samples in the batch over all ranks.
    """

    tensors: dict[str, Tensor]
    indices: Tensor
    global_size: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def weight(self) -> float:
        """This rank's part of the global batch: the factor that makes its mean loss a summand of the global one."""
        return len(self) / self.global_size

    def split(self, parts: int) -> list["Batch"]:
        """Cut into ``parts`` micro-batches of nearly equal size, leaving out empty ones."""
        rows = [r for r in torch.tensor_split(torch.arange(len(self)), parts) if len(r)]
        return [
            Batch({name: t[r[0] : r[-1] + 1] for name, t in self.tensors.items()}, self.indices[r], self.global_size)
            for r in rows
        ]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device; the indices, which choose rows of tables, stay in main memory."""
        return replace(self, tensors={name: t.to(device) for name, t in self.tensors.items()})


@dataclass
class StepStats:
    """What one step did on this rank.

    Attributes:
        loss: this rank's summand of the global mean loss.
        learning_rate: of this step.
        extra: further scalars by name, for the metrics file; the same names on all ranks.
        choices: which collectives carry the gradients, if the exchange chose them.
    """

    loss: float
    learning_rate: float
    extra: dict[str, float] = field(default_factory=dict)
    choices: Choices | None = None


Loss = Callable[[nn.Module, Batch], Tensor]  # mean over the batch's samples


@dataclass(frozen=True)
class OutputLoss:
    """A loss that needs nothing of the model but its outputs: the kind that a solver can take apart.

    Attributes:
        inputs: what the model gets of a batch, shape (n, ...).
        criterion: mean over the batch's samples, from the model's outputs and the batch.
        example: inputs of one sample, shape (1, ...), from which shapes and costs inside the model can be learnt.
    """

    inputs: Callable[[Batch], Tensor]
    criterion: Callable[[Tensor, Batch], Tensor]
    example: Tensor

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.criterion(model(self.inputs(batch)), batch)


class Solver(Protocol):
    """Owns a model's parameters and whatever the ranks must exchange to move them.

    Attributes:
        model: the whole model; parameters that other ranks own are as of the last ``gather``.
        data_rank, data_size: this rank takes the data_rank'th of data_size parts of every global batch. Ranks that hold
            different pieces of one model take the same part.
        optimizers: those whose steps alone change the model's parameters, and their own state; none, if something else
            changes them too.
        pipelined: whether batches are in flight between steps, which ``gather`` finishes: then it moves the training.
    """

    pipelined: bool = False
    optimizers: Sequence[torch.optim.Optimizer] = ()
    model: nn.Module
    data_rank: int
    data_size: int

    def step(self, batch: Batch) -> StepStats:
        """Move the parameters by one global batch. Collective."""

    def gather(self) -> None:
        """Make ``model`` the same on all ranks, with nothing left under way: before an evaluation or a checkpoint.
        Collective.
        """

    def plan(self, flops: float) -> dict[str, str]:
        """What a step will do, for a person: lines of (what, how much).

        Args:
            flops: floating-point operations of this rank's forward and backward passes in a step.
        """

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
