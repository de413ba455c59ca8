"""Which ranks learn, which collect, and who has whose transitions."""

from dataclasses import dataclass

import numpy as np

from hpcopt.errors import JobError


@dataclass(frozen=True)
class Roles:
    """Of all ranks. The first ``learners`` learn; the others collect, each for one learner, or all do both.

    Attributes:
        learners, ranks: how many there are.
        environments: of all ranks.

    >>> Roles(learners=2, ranks=5, environments=7).collectors_of(0), Roles(2, 5, 7).environments_of(4)
    ([2, 4], [5, 6])
    """

    learners: int
    ranks: int
    environments: int

    @property
    def apart(self) -> bool:
        """Whether learners and collectors are different ranks."""
        return self.ranks > self.learners

    @property
    def collectors(self) -> range:
        """The ranks that act."""
        return range(self.learners if self.apart else 0, self.ranks)

    def collectors_of(self, learner: int) -> list[int]:
        """The ranks that act for a learner."""
        return [rank for rank in self.collectors if self.learner_of(rank) == learner]

    def learner_of(self, collector: int) -> int:
        """The rank that gets a collector's transitions."""
        return (collector - self.collectors.start) % self.learners

    def environments_of(self, rank: int) -> list[int]:
        """The numbers of a rank's environments; none, if it does not act."""
        if rank not in self.collectors:
            return []
        parts = np.array_split(np.arange(self.environments), len(self.collectors))
        return list(map(int, parts[rank - self.collectors.start]))

    def check(self) -> None:
        """See that everybody has something to do.

        Raises:
            JobError: on all ranks: somebody has not.
        """
        learners, collectors = self.learners, len(self.collectors)
        if self.ranks < learners or (self.apart and collectors < learners):
            raise JobError(
                f"[solver] learners = {learners} do not go with {self.ranks} ranks: each learner needs a rank that "
                "collects for it, or all ranks learn and collect"
            ).everywhere()
        if self.environments < collectors:
            raise JobError(
                f"[workload] environments = {self.environments} cannot be shared by {collectors} ranks that collect: "
                f"give each at least one, --set workload.environments={collectors}"
            ).everywhere()
