"""Virtual ranks: as many as a job says, dealt out to however many ranks there are.

What depends on who computes it (a part of the batch, random numbers, a ballot) belongs to a virtual rank, and what
virtual ranks have is summed in a form that does not depend on where they are (``hpcopt.comm.fixed_tree``): a job then
has the same bits on any number of ranks.
"""

from dataclasses import dataclass

from hpcopt.comm.shards import shards
from hpcopt.errors import JobError
from hpcopt.seeds import derive


@dataclass(frozen=True)
class VirtualRanks:
    """V virtual ranks on P ranks, neighbours together.

    Attributes:
        count: V.
        rank, ranks: this rank, and P.
        seed: of all that virtual ranks draw.
    """

    count: int
    rank: int = 0
    ranks: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise JobError, on all ranks, if there are too few for each rank to hold one."""
        if self.count < self.ranks:
            raise JobError(
                f"{self.count} virtual ranks are too few for {self.ranks} ranks: give [run] virtual_ranks = "
                f"{self.ranks} or more, from the first start on"
            ).everywhere()

    @property
    def held(self) -> range:
        """Those on this rank."""
        return self.held_by(self.rank)

    def held_by(self, rank: int) -> range:
        """Those on a rank."""
        stretch = shards(self.count, self.ranks)[rank]
        return range(stretch.start, stretch.stop)

    def seed_of(self, virtual_rank: int, step: int, purpose: str) -> int:
        """What a virtual rank draws by in a step, of 63 bits."""
        return derive(self.seed, step, virtual_rank, f"virtual rank, {purpose}")
