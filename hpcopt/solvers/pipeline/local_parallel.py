"""Local parallelism (Laskin et al. 2020, arXiv:2012.03837): blocks that are trained by losses of their own.

Block k of T has layers f_k and, but for the last, an auxiliary head a_k::

    h_k = f_k(h_{k-1}),   loss_k = criterion(a_k(h_k), y),   loss_T = criterion(h_T, y)

Each loss trains its head, its block and ``reach - 1`` blocks below it; no gradient goes further down. So reach = 1 is
the paper's greedy form, 2 and more its overlapping one, and few large blocks its chunked one. One block is
back-propagation. Heads are no part of the model.

With reach = 1 nothing comes down: a rank takes the next activations, steps, and is at most ``ahead`` batches before the
rank above. That is no staleness: each batch meets the weights that it meets in one process, and gives the same bits.
With reach > 1 a rank waits for the gradients of reach - 1 losses above it, or with ``staleness = s`` takes those of the
batch s steps ago, by its present weights.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.families import HEADS
from hpcopt.models.heads import AutoHeadConfig, HeadConfig
from hpcopt.pipeline.link import DOWN, UP
from hpcopt.pipeline.spread import Spread, kept_bytes
from hpcopt.randomness import drawn_by
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task, Tree
from hpcopt.shapes.stats import Scalar, StepStats
from hpcopt.solvers.pipeline.late import Late, Visit
from hpcopt.solvers.pipeline.piece import Piece
from hpcopt.solvers.pipeline.split import SplitConfig, SplitSolver

PASSED = 4  # tag of the gradients that come from more than one block above


class LocalParallelConfig(SplitConfig):
    """Blocks of a network trained by their own losses: greedy, overlapping or chunked."""

    name: Literal["local_parallel"] = "local_parallel"
    head: Annotated[HeadConfig, HEADS] = Field(
        AutoHeadConfig(), description="that gives the loss of every block but the last; dropped in the end"
    )
    reach: int = Field(
        1, ge=1, description="blocks that a loss trains: its own (1, greedy), or also so many below it (overlapping)"
    )
    staleness: int = Field(
        0, ge=0, description="batches by which gradients from the block above come late, with reach = 2; 0 waits"
    )
    ahead: int = Field(4, ge=1, description="batches that a rank may be before the one above it")

    @model_validator(mode="after")
    def _late_gradients_come_from_one_block(self) -> Self:
        if self.staleness and self.reach != 2:
            raise ValueError(
                "staleness goes with reach = 2: with reach = 1 no gradient comes down, with more they come by turns"
            )
        return self

    @model_validator(mode="after")
    def _no_gradient_of_the_whole(self) -> Self:
        if self.clip_norm is not None:
            raise ValueError("clip_norm is of the gradient of the whole network, which there is not here")
        return self

    def build(self, task: Task, context: Context) -> "LocalParallel":
        """Make the solver. Collective.

        Raises:
            JobError: the model, its loss or the ranks cannot be cut as asked, or the head does not suit a block.
        """
        return LocalParallel(self, task, context)


class LocalParallel(SplitSolver):
    """The solver."""

    lockstep = False

    def __init__(self, config: LocalParallelConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""

        def head(spread: Spread, t: int) -> nn.Module | None:
            if t == len(spread.blocks) - 1:
                return None
            features, outputs = spread.examples[t + 1], spread.examples[-1]
            with drawn_by(context.seed(f"head {t}")):
                made = config.head.build(tuple(features.shape[1:]), tuple(outputs.shape[1:]))
            return made.to(features.device, features.dtype)

        super().__init__(config, task, context, head)
        self._own, self._reach = config, config.reach
        self._untaken = 0  # batches sent up that the rank above has not told of

    def settle(self) -> None:
        super().settle()
        config, last = self._config, len(self.spread.blocks) - 1
        assert isinstance(config, LocalParallelConfig)
        self._above_of = {t: min(config.reach - 1, last - t) for t in self.spread.owned}  # losses above that train t
        self._late = {t: Late(config.staleness) for t in self.spread.owned if config.staleness and self._above_of[t]}

    def step(self, batch: TensorBatch) -> StepStats:
        start_s, spread = time.perf_counter(), self.spread
        spread.waited_s()
        micros = batch.split(self._config.accumulate)
        for piece in self.pieces:
            late = self._late.get(piece.number)
            from_above = late.due if late else len(micros) * self._above_of[piece.number]
            piece.begin(len(micros) + from_above)
        self._wait_for_room()
        if spread.below:
            for micro in micros:
                spread.below.expect(*spread.at(spread.owned[0], len(micro)), UP)
        visits: dict[int, list[Visit]] = {t: [] for t in spread.owned}
        losses = dict.fromkeys(spread.owned, 0.0)
        for part, micro in enumerate(micros):
            self._up(micro, self.message(part), visits, losses)
        for t in reversed(spread.owned):
            if self._above_of[t]:
                self._from_above(t, visits)
        rate = self.update()
        told = {f"loss_{t}": Scalar(value, "sum") for t, value in losses.items() if t in self._more}
        waited = spread.waited_s() / (time.perf_counter() - start_s)
        loss = None if spread.above else losses[spread.owned[-1]]
        return StepStats(loss, rate, {**told, f"idle_{spread.mesh.stage}": Scalar(waited)})

    def _wait_for_room(self) -> None:
        """Be no more than so many batches before the rank above; tell the one below that the next one is taken. Where
        gradients come down, they say as much.
        """
        if self._reach > 1:
            return
        if self.spread.above:
            if self._untaken == self._own.ahead:
                self.spread.above.wait_until_taken()
                self._untaken -= 1
            self._untaken += 1
        if self.spread.below:
            self.spread.below.tell_taken()

    def _up(self, micro: TensorBatch, message: int, visits: dict[int, list[Visit]], losses: dict[int, float]) -> None:
        """Take a micro-batch through this rank's blocks, each of which learns from its own loss at once."""
        spread = self.spread
        h = spread.below.receive(*spread.at(spread.owned[0], len(micro)), UP) if spread.below else self.inputs(micro)
        for t in spread.owned:
            x = h.detach().requires_grad_(self._reach > 1 and t > 0)
            with self._clock("forward"):
                out = spread.blocks[t](x)
            h = out.detach()
            if t == spread.owned[-1] and spread.above:
                spread.above.send(h, UP, message)
            losses[t] += self._learn(t, out, micro)
            needed = self._above_of[t] and t not in self._late
            visits[t].append(visit := Visit(x, out if needed else None))
            if x.requires_grad:
                visit.slopes.append(_taken(x))
                if t == spread.owned[0] and spread.below:
                    spread.below.send(visit.slopes[0], DOWN, message)

    def _learn(self, t: int, out: Tensor, micro: TensorBatch) -> float:
        """Gradients of a block's own loss, in its head and its layers; its summand of the mean over the batch."""
        if t not in self._more:
            with self._clock("forward"):
                loss: Tensor = self._loss.criterion(out, micro) * micro.weight
            with self._clock("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()
        with self._clock("forward"):
            end = out.detach().requires_grad_()
            loss = self._loss.criterion(self._more[t](end), micro) * micro.weight
        with self._clock("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
            if out.requires_grad:
                needed_again = self._above_of[t] > 0 and t not in self._late
                torch.autograd.backward(out, end.grad, retain_graph=needed_again)
        return loss.item()

    def _from_above(self, t: int, visits: dict[int, list[Visit]]) -> None:
        """Take the gradients of the losses above a block through it, and pass on those that go further down."""
        known = [visit.slopes for visit in visits[t + 1]] if t + 1 in visits else None
        if t in self._late:
            own = None if known is None else [slopes[0] for slopes in known]
            inputs, late = self._late[t].swap([visit.inputs.detach() for visit in visits[t]], own)
            for x, slope in zip(inputs, late or [self._receive(t, len(x))[0] for x in inputs], strict=True):
                with self._clock("backward"):
                    torch.autograd.backward(self.spread.blocks[t](x), slope)
            return
        for part, visit in enumerate(visits[t]):
            slopes = self._receive(t, len(visit.inputs)) if known is None else known[part]
            with self._clock("backward"):
                self._through(visit, slopes)
            if t == self.spread.owned[0] and self.spread.below and len(visit.slopes) > 1:
                self.spread.below.send(torch.stack(visit.slopes[1:]), PASSED, self.message(part))

    def _through(self, visit: Visit, slopes: Sequence[Tensor]) -> None:
        """One loss after the other: each goes on from here by itself, or ends here."""
        out, visit.outputs = visit.outputs, None
        assert out is not None
        for index, slope in enumerate(slopes):
            if out.requires_grad:
                torch.autograd.backward(out, slope, retain_graph=index + 1 < len(slopes))
            if visit.inputs.requires_grad:
                found = _taken(visit.inputs)
                if len(visit.slopes) < self._reach - 1:
                    visit.slopes.append(found)

    def _receive(self, t: int, samples: int) -> list[Tensor]:
        """Gradients in block t's outputs, from the rank above: of the next block's loss, and of those above that."""
        above, count = self.spread.above, self._above_of[t]
        assert above is not None
        shape, dtype = self.spread.at(t + 1, samples)
        first = above.receive(shape, dtype, DOWN)
        return [first, *above.receive((count - 1, *shape), dtype, PASSED)] if count > 1 else [first]

    def gather(self) -> None:
        """Take in what still comes from above, to use when it is due; then as ever. Collective."""
        for t, late in self._late.items():
            late.fill([[self._receive(t, len(x))[0] for x in inputs] for inputs in late.awaited()])
        while self._untaken and self.spread.above:
            self.spread.above.wait_until_taken()
            self._untaken -= 1
        super().gather()

    def plan(self, flops: float) -> dict[str, str]:
        spread, own = self.spread, self._own
        heads = sum(p.numel() for head in self._more.values() for p in head.parameters())
        kept = max(kept_bytes(block, spread.examples[t]) for t, block in enumerate(spread.blocks))
        down = f"those of {own.reach - 1} blocks above, {own.staleness} batches late" if own.reach > 1 else "none"
        return {
            **super().plan(flops),
            "heads": f"{len(self._more)}, of {heads:,} parameters, dropped from the model",
            "gradients": f"from above {down}; kept of a sample at a block {kept:,} bytes at most, whatever the depth",
        }

    def rank_state_dict(self) -> Tree:
        heads = {str(t): self._more[t].state_dict() for t in self.spread.owned if t in self._more}
        late = {str(t): late.state_dict() for t, late in self._late.items()}
        return {**super().rank_state_dict(), "heads": heads, "late": late}

    def load_piece(self, piece: Piece, holders: Sequence[Tree]) -> None:
        """With as many data groups as saved, gradients that come late go on; with others they are dropped."""
        super().load_piece(piece, holders)
        t, mesh = piece.number, self.spread.mesh
        if t in self._more:
            self._more[t].load_state_dict(holders[0]["heads"][str(t)])
        if t in self._late and len(holders) == mesh.groups:
            self._late[t].load_state_dict(holders[mesh.group]["late"].get(str(t), []), self.spread.examples[t])


def _taken(x: Tensor) -> Tensor:
    """A leaf's gradient, which then has none."""
    found, x.grad = x.grad, None
    return torch.zeros_like(x) if found is None else found
