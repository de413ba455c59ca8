"""What solvers of a network over ranks have in common: their blocks' pieces, and the state of the whole."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import JobError, fitting
from hpcopt.optim.by_pattern import assigned
from hpcopt.pipeline.spread import Spread, SpreadConfig, memory_bytes
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.solvers.first_order import FirstOrder
from hpcopt.solvers.pipeline.piece import Piece
from hpcopt.store.saved_parts import SavedParts


class SplitConfig(SolverConfig, FirstOrder, SpreadConfig):
    """A network over ranks, trained by gradients."""

    timed: bool = Field(
        False,
        description="balance stages by the seconds that blocks take on rank 0 and messages between neighbours at the "
        "start, not as balance says; a run that goes on keeps its stages",
    )


class SplitSolver(Solver):
    """The solver, on a rank that holds a run of consecutive blocks.

    Attributes:
        spread: which blocks are where.
        pieces: those of this rank's blocks, in turn.
    """

    def __init__(
        self,
        config: SplitConfig,
        task: Task,
        context: Context,
        more: Callable[[Spread, int], nn.Module | None] = lambda _spread, _block: None,
    ) -> None:
        """Start from rank 0's parameters. Collective.

        Args:
            config: the job's section.
            task: model and loss.
            context: ranks, device, seeds.
            more: gives what a block has beside its layers, trained with them.
        """
        if not isinstance(task.loss, OutputLoss):
            raise JobError(
                f'[solver] name = "{config.name}" needs a workload whose loss is a function of the model\'s outputs '
                "and the batch"
            ).everywhere()
        self.model, self._loss, self._config, self._clock = task.model, task.loss, config, context.clock
        self._steps, self._step = context.total_steps, 0
        self.spread = spread = Spread(
            config, task.model, task.loss.example, context, under_way=4 * config.accumulate + 4, timed=config.timed
        )
        self.data_rank, self.data_size = spread.mesh.group, spread.mesh.groups
        self._more = {t: module for t in range(len(spread.blocks)) if (module := more(spread, t)) is not None}
        names = {p: name for name, p in task.model.named_parameters()}
        names |= {p: f"heads.{t}.{name}" for t, head in self._more.items() for name, p in head.named_parameters()}
        assigned(config.groups, list(names.values()))
        self._names, self._context = names, context
        self.settle()

    def settle(self) -> None:
        """Make the pieces of the blocks that this rank owns. Collective over the peers."""
        spread, names = self.spread, self._names
        self.pieces = []
        for t in spread.owned:
            modules = [spread.blocks[t], *([self._more[t]] if t in self._more else [])]
            named = [(names[p], p) for module in modules for p in module.parameters() if p.requires_grad]
            self.pieces.append(Piece(t, named, self._config, spread.peers, self._context))

    def inputs(self, batch: TensorBatch) -> Tensor:
        """What the first block gets."""
        return self._loss.inputs(batch)

    def message(self, part: int) -> int:
        """Number of this step's messages of a micro-batch, which decides what a codec draws."""
        return self._step * self._config.accumulate + part

    def update(self) -> float:
        """Exchange what is not yet exchanged and step; give the learning rate. Collective over the peers."""
        for piece in self.pieces:
            piece.exchange.finish()
        with self._clock("update"):
            self.clip()
            rate = self._config.learning_rate(self._step, self._steps)
            for piece in self.pieces:
                piece.update(rate, self._step)
        self._step += 1
        return rate

    def clip(self) -> None:
        """Shorten the gradients that were exchanged, if the job says so."""

    def gather(self) -> None:
        self.spread.gather()

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        for piece in self.pieces:
            yield from piece.tensors()

    def plan(self, flops: float) -> dict[str, str]:
        own = [p for piece in self.pieces for _, p in piece.tensors()]
        lines = {"parameters": f"{sum(p.numel() for p in self.model.parameters()):,}", **self.spread.plan()}
        if self.spread.mesh.groups > 1:
            sent = sum(piece.exchange.planned_bytes() for piece in self.pieces)
            lines["bytes a step"] = f"{sent:,} sent by rank 0 to the {self.spread.mesh.groups - 1} others of its stage"
        whole = memory_bytes(list(self.model.parameters()))
        lines["memory"] = f"{whole:,} bytes of parameters a rank, on rank 0 {memory_bytes(own):,} more of gradients"
        return lines

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict(), "ranks": self.spread.saved()}

    def rank_state_dict(self) -> Tree:
        return {"pieces": {str(piece.number): piece.state_dict() for piece in self.pieces}}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        with fitting("the job's model, blocks or optimizer"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            self._step, saved = shared["step"], shared["ranks"]
            if self.spread.place_as(saved):
                self.settle()
            for piece in self.pieces:
                holders = self.spread.holders(saved, piece.number)
                self.load_piece(piece, [SavedParts.of(parts)[rank] for rank in holders])

    def load_piece(self, piece: Piece, holders: Sequence[Any]) -> None:
        """Take over a block from the states of all saved ranks that held it."""
        piece.load_state_dict([part["pieces"][str(piece.number)] for part in holders])
