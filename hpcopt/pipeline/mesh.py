"""Which rank holds which blocks and takes which data.

The ranks form data groups of ``stages`` neighbouring ranks; rank ``group * stages + stage`` holds the stage'th run of
blocks and takes the group'th part of every batch. Ranks of one stage hold the same blocks: peers.
"""

from dataclasses import dataclass

import torch

from hpcopt.errors import JobError


@dataclass(frozen=True)
class Mesh:
    """The place of one rank.

    Attributes:
        rank, size: of the whole job.
        blocks: number of blocks, T.
        stages: ranks that one copy of the model is spread over.
        starts: the first block of each stage; empty: each has as many as the others.
    """

    rank: int
    size: int
    blocks: int
    stages: int
    starts: tuple[int, ...] = ()

    @classmethod
    def choose(cls, rank: int, size: int, blocks: int, stages: int | None) -> "Mesh":
        """Take the given number of stages, or as many as fit both the ranks and the blocks.

        Raises:
            JobError: the ranks cannot be grouped so, or a stage would have no block.
        """
        if stages is None:
            stages = max(s for s in range(1, min(size, blocks) + 1) if size % s == 0)
        if stages > blocks:
            raise JobError(f"[solver] stages = {stages}, but there are {blocks} blocks: a rank would have none")
        if size % stages:
            raise JobError(f"{size} ranks cannot form groups of [solver] stages = {stages}")
        return cls(rank, size, blocks, stages)

    @property
    def stage(self) -> int:
        """Which run of blocks this rank holds."""
        return self.rank % self.stages

    @property
    def group(self) -> int:
        """Which part of the data this rank takes."""
        return self.rank // self.stages

    @property
    def groups(self) -> int:
        """Number of data groups."""
        return self.size // self.stages

    def owned(self, stage: int) -> range:
        """The blocks of a stage."""
        if self.starts:
            edges = (*self.starts, self.blocks)
            return range(edges[stage], edges[stage + 1])
        part = torch.tensor_split(torch.arange(self.blocks), self.stages)[stage]
        return range(int(part[0]), int(part[-1]) + 1)

    def owner(self, block: int) -> int:
        """The rank of the first group that holds a block."""
        return next(stage for stage in range(self.stages) if block in self.owned(stage))

    def delay(self, in_flight: int) -> int:
        """Batches that this rank has taken forward beyond the one that it takes backward, with so many in flight.

        They are spread evenly over the stages: none at the last one, ``in_flight - 1`` at the first.
        """
        if self.stages == 1:
            return 0
        return round((in_flight - 1) * (self.stages - 1 - self.stage) / (self.stages - 1))
