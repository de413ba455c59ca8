"""What the trainer knows of a workload."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from hpcopt.config import Choice
from hpcopt.errors import JobError
from hpcopt.families import REWRITES
from hpcopt.held import Held
from hpcopt.models.rewrite import Penalised, Rewrite, with_penalties
from hpcopt.randomness import drawn_by
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import Loss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.simulation import Simulation
from hpcopt.shapes.solver import Tree

Better = Literal["higher", "lower"]
Precision = Literal["float32", "bfloat16"]


class Workload(Held, ABC):
    """A model with its data, loss and scores. Data is split at the source: a rank reads its own samples only.

    Attributes:
        model: the network, initialised the same on all ranks.
        batch: samples in one global batch.
        train_samples, test_samples: samples in each split, int; None if nobody knows.
        scores: which direction is better, of each figure of merit by name, in the order in which they are told.
        loss: of a model and a batch: the mean over the batch's samples.
        ahead: whether the batches are a function of the step alone, and of no generator that others draw from, so that
            where the model is on a GPU a thread may make them before their steps, and another than takes them.
    """

    ahead: ClassVar[bool] = False
    model: nn.Module
    batch: int
    train_samples: Any
    test_samples: Any
    scores: Mapping[str, Better]
    loss: Loss

    @property
    def steps_per_epoch(self) -> int | None:
        """Global batches in one pass over the training samples, an incomplete last one left out; None if nobody
        knows.
        """
        return None

    def verify(self, rank: int, size: int) -> None:
        """Check this rank's share of the data files, if there are any.

        Raises:
            DataError: a file is damaged.
        """
        return

    @abstractmethod
    def train_batches(self, rank: int, size: int, start: int) -> Iterator[Any]:
        """Give the rank-th of size parts of every global batch, each a ``Batch``, for ever, from step ``start`` on. A
        generator: it runs between two steps, unless ``ahead``, and may look at what ``model`` has become.
        """

    def by_index(self) -> Samples | None:
        """The training samples, for solvers that choose some themselves; None, if the data are read front to back."""
        return None

    def simulation(self) -> Simulation | None:
        """The environments, for solvers that act; None, if the data do not depend on what is done."""
        return None

    @abstractmethod
    def test_batches(self, rank: int, size: int) -> Iterator[Any]:
        """Give this rank's part of the test samples, once; it may be empty."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """What a batch adds to the figures of merit: tensors by name, which are summed over all batches and ranks."""

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of merit from the sums, float64; those of means over samples, unless a workload has others."""
        samples = self.test_samples
        assert samples is not None
        return {name: float(total) / samples for name, total in sums.items()}

    def state_dict(self) -> Tree:
        """This rank's own state of the data, after the batch that was given last; None if the number of the step says
        all. A checkpoint keeps it.
        """
        return None

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        """Go on from every saved rank's ``state_dict``, read on access, before ``train_batches`` is called. There may
        be more or fewer than now.
        """
        return


class WorkloadConfig(Choice, ABC):
    """What is trained: a model, its data, its loss and its scores."""

    may_change: ClassVar[frozenset[str]] = frozenset({"data", "model", "rewrites", "precision", "compile"})
    """Keys that do not decide which samples a step draws: a resumed run may have others."""

    batch: int = Field(ge=1, description="samples in one step, over all ranks")
    precision: Precision = Field(
        "float32", description="of matrix products in the model; parameters, norms and losses are float32"
    )
    compile: bool = Field(False, description="let torch.compile translate the model; takes a C++ compiler")
    rewrites: tuple[Annotated[Rewrite, REWRITES], ...] = Field(
        (), description="changes of the network once it is made, one after another"
    )

    @property
    def folder(self) -> Path | None:
        """The folder of a data set that hpcopt may know how to make, if the data are such a set."""
        return None

    @abstractmethod
    def build(self, context: Context) -> Workload:
        """Open the data and make the model. What is drawn at random comes from ``context``'s seeds.

        Raises:
            DataError: the data are missing, damaged, or not what the workload needs.
            JobError: the settings do not suit the data.
        """

    def made(self, context: Context) -> Workload:
        """``build``, and the rewrites.

        Raises:
            DataError, JobError: as of ``build``; or a rewrite does not suit the network.
        """
        workload = self.build(context)
        for number, rewrite in enumerate(self.rewrites):
            with drawn_by(context.seed(f"rewrite {number}")):
                try:
                    workload.model = rewrite.apply(workload.model)
                except ValueError as cause:
                    raise JobError(f"[[workload.rewrites]] {rewrite.name}: {cause}") from cause
        if any(isinstance(layer, Penalised) for layer in workload.model.modules()):
            workload.loss = with_penalties(workload.loss)
        return workload
