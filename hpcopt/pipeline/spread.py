"""A network spread over ranks: its blocks, the run of them that this rank holds, and its links to the neighbours.

Ranks of one data group hold one copy of the network between them and take the same part of every batch. Every rank also
has the modules of the others, whose parameters are as of the last ``gather``: no gradients, no optimizer, no outputs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.comm.world import World
from hpcopt.compress import Codec
from hpcopt.config import Config
from hpcopt.families import CODECS
from hpcopt.pipeline.cut import Balance, balanced, costs, cut, outputs
from hpcopt.pipeline.link import Link
from hpcopt.pipeline.measured import SAMPLES, measured_links, measured_s
from hpcopt.pipeline.mesh import Mesh
from hpcopt.shapes.context import Context


class SpreadConfig(Config):
    """Where a network is cut, and how many ranks a copy of it stands on."""

    blocks: int | None = Field(
        None, ge=1, description="blocks that the model is cut into; by default every layer with parameters is one"
    )
    balance: Balance = Field("cost", description="what blocks have as much of as each other: multiply-adds, or layers")
    cuts: tuple[str, ...] = Field((), description="instead of blocks: names of the layers that each begin one")
    stages: int | None = Field(
        None, ge=1, description="ranks that one copy of the model is spread over; by default as many as fit"
    )
    codec: Annotated[Codec, CODECS] | None = Field(
        None, description="what the messages between stages are encoded with"
    )


class Spread:
    """One rank's place.

    Attributes:
        blocks: of the whole network, in turn.
        mesh: which rank holds which.
        owned: those that this rank holds.
        peers: the ranks that hold the same ones.
        examples: one sample's inputs of every block, and the network's outputs.
        below, above: links to the neighbours, if there are any.
        costs: multiply-adds of each block for a sample, forward; or 1 each, as ``balance`` says; or measured seconds.
    """

    def __init__(
        self,
        config: SpreadConfig,
        model: nn.Module,
        example: Tensor,
        context: Context,
        *,
        under_way: int,
        timed: bool = False,
    ) -> None:
        """Start from rank 0's parameters. Collective.

        Args:
            config: says where to cut.
            model: the network.
            example: inputs of one sample, shape (1, ...).
            context: of the solver.
            under_way: messages that each link may have pending.
            timed: balance stages by measured seconds, of their blocks and of the messages between them.

        Raises:
            JobError: model or ranks cannot be cut as asked.
        """
        world, dtype = context.world, next((p.dtype for p in model.parameters()), example.dtype)
        example = example.to(dtype) if example.is_floating_point() else example
        self._world = world
        self.blocks = cut(model, example, blocks=config.blocks, balance=config.balance, at=config.cuts)
        self.costs = costs(self.blocks, example) if config.balance == "cost" else [1.0] * len(self.blocks)
        self.examples = [example, *outputs(self.blocks, example)]
        self._timed = timed
        if timed:
            self.costs = measured_s(self.blocks, self.examples, world)
        mesh = Mesh.choose(world.rank, world.size, len(self.blocks), config.stages)
        between = self._between_s(config.codec, mesh.stages, context) if timed else None
        self.mesh = mesh = replace(mesh, starts=balanced(self.costs, mesh.stages, between))
        self.owned = mesh.owned(mesh.stage)
        for tensor in model.state_dict().values():
            world.broadcast(tensor)
        self.peers = world if mesh.stages == 1 else world.split(mesh.stage, world.rank)
        self.below = None if mesh.stage == 0 else Link(context, world.rank - 1, config.codec, under_way)
        last = mesh.stage == mesh.stages - 1
        self.above = None if last else Link(context, world.rank + 1, config.codec, under_way)

    @property
    def links(self) -> list[Link]:
        """Those that there are."""
        return [link for link in (self.below, self.above) if link is not None]

    def at(self, boundary: int, samples: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of what block ``boundary`` gets, or the one before it gives, for so many samples."""
        example = self.examples[boundary]
        return (samples, *example.shape[1:]), example.dtype

    def waited_s(self) -> float:
        """Seconds since the last call for which this rank has waited for its neighbours."""
        waited_s = sum(link.waited_s for link in self.links)
        for link in self.links:
            link.waited_s = 0.0
        return waited_s

    def gather(self) -> None:
        """Wait until no message is under way; then every block goes from its rank to all others. Collective."""
        for link in self.links:
            link.flush()
        share_blocks(self._world, self.mesh, self.blocks)

    def _between_s(self, codec: Codec | None, stages: int, context: Context) -> list[list[float]]:
        """Measured seconds of a message of ``SAMPLES`` samples over each boundary of stages, if it lies before a block:
        a stage's forward and backward pass hides its messages, so the slowest of all is what a batch takes. Collective.
        """
        sizes = [
            SAMPLES * x.numel() * x.element_size()
            if codec is None
            else codec.for_tensor("", (SAMPLES, *x.shape[1:])).max_bytes(SAMPLES * x.numel())
            for x in self.examples
        ]
        links = measured_links(context.world, stages, context.device)
        return [[link(nbytes) for nbytes in sizes] for link in links]

    def boundary_bytes(self, boundary: int) -> int:
        """Of one sample's values there."""
        example = self.examples[boundary]
        return example.numel() * example.element_size()

    def plan(self) -> dict[str, str]:
        """For a person: who holds what, and what a boundary carries for each sample."""
        mesh = self.mesh
        total, lines = sum(self.costs), []
        for stage in range(mesh.stages):
            own = mesh.owned(stage)
            share = sum(self.costs[t] for t in own) / total
            parameters = sum(p.numel() for t in own for p in self.blocks[t].parameters())
            what = "measured time" if self._timed else "multiply-adds"
            lines.append(f"blocks {own[0]} to {own[-1]}: {parameters:,} parameters, {share:.0%} of the {what}")
        inner = [mesh.owned(stage)[0] for stage in range(1, mesh.stages)]
        carried = ", ".join(f"{self.boundary_bytes(t):,}" for t in inner)
        boundaries = {"boundaries": f"{carried} bytes a sample and way, before a codec"} if inner else {}
        return {
            "blocks": f"{len(self.blocks)} on {mesh.stages} ranks, {mesh.groups} data groups of those",
            "stages": "\n".join(lines),
            **boundaries,
        }

    def saved(self) -> list[int]:
        """What ``holders`` needs to know of this run: ranks, stages, and each stage's first block."""
        return [self.mesh.size, self.mesh.stages, *self.mesh.starts]

    def place_as(self, saved: Sequence[int]) -> bool:
        """Take up a saved run's stages, where a clock has dealt them and both have as many; says whether they move."""
        size, stages, *starts = saved
        now = [self.mesh.size, self.mesh.stages]
        if not self._timed or [size, stages] != now or tuple(starts) == self.mesh.starts:
            return False
        self.mesh = replace(self.mesh, starts=tuple(starts))
        self.owned = self.mesh.owned(self.mesh.stage)
        return True

    def holders(self, saved: Sequence[int], block: int) -> range:
        """The ranks of a saved run, in the order of their data groups, that held a block."""
        size, stages, *starts = saved
        return range(Mesh(0, size, len(self.blocks), stages, tuple(starts)).owner(block), size, stages)


def share_blocks(world: World, mesh: Mesh, blocks: Sequence[nn.Module]) -> None:
    """Every block's values go from its rank to all others. Collective."""
    if mesh.stages > 1:
        for t, block in enumerate(blocks):
            for tensor in block.state_dict().values():
                world.broadcast(tensor, mesh.owner(t))


def memory_bytes(tensors: Sequence[Tensor]) -> int:
    """What tensors take."""
    return sum(x.numel() * x.element_size() for x in tensors)


def kept_bytes(layers: nn.Module, example: Tensor) -> int:
    """What autograd keeps of one sample's way through layers in training, beside their parameters; 0 if they cannot be
    trained on one sample.
    """
    own = {p.data_ptr() for p in layers.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    buffers = [b.clone() for b in layers.buffers()]
    x = example.detach()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            held = layers(x.requires_grad_() if x.is_floating_point() else x)
            del held
    except ValueError:  # batch normalisation takes no single sample
        return 0
    finally:
        with torch.no_grad():
            for b, value in zip(layers.buffers(), buffers, strict=True):
                b.copy_(value)
    return sum(kept.values())
