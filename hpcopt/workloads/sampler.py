"""Which samples of somebody's data set a rank takes in each step: the ones that it would have in a job."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from hpcopt.comm.virtual import VirtualRanks
from hpcopt.errors import JobError
from hpcopt.shapes.solver import Tree
from hpcopt.workloads.order import TrainOrder


class StepSampler(Sampler[list[int]]):
    """This rank's part of the global batch of each step, from the coming step to the end of its epoch: the
    ``batch_sampler`` of a ``torch.utils.data.DataLoader``.

    A function of (seed, step, rank, size) alone (``hpcopt.workloads.order``): a global batch is the same set of samples
    at any number of ranks, and what a loader has read ahead is of no consequence to a resume.

    Attributes:
        batch: samples in a step over all ranks.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        *,
        seed: int,
        ranks: VirtualRanks,
        start: Callable[[], int],
        uneven: bool = False,
    ) -> None:
        """Deal samples out.

        Args:
            samples: in the data set.
            batch: of them in a step, over all ranks.
            seed: the same on all ranks.
            ranks: of whom those on this rank have their shares, one after the other.
            start: steps done, when a pass begins.
            uneven: ranks may have shares that differ by a sample.

        Raises:
            JobError: on all ranks: the data set, the batch and the ranks do not suit each other.
        """
        size, whose = ranks.count, "ranks" if ranks.count == ranks.ranks else "virtual ranks"
        if not size <= batch <= samples:
            raise JobError(
                f"batch = {batch} of {samples} samples on {size} {whose}: each takes one at least, and a data set "
                "fills one batch at least"
            ).everywhere()
        if batch % size and not uneven:
            near = batch - batch % size
            raise JobError(
                f"batch = {batch} on {size} {whose}: their shares would differ by a sample, and the mean of their mean "
                f"losses would not be that of the batch. Take {near} or {near + size}; or say uneven=True, and "
                "multiply each rank's mean loss by session.weight"
            ).everywhere()
        self.batch, self._samples, self._ranks, self._start = batch, samples, ranks, start
        self._order = TrainOrder(samples, batch, seed)

    def __iter__(self) -> Iterator[list[int]]:
        first, epoch = self._start(), self._order.steps_per_epoch
        for step in range(first, first + epoch - first % epoch):
            yield [index for share in self._shares(step) for index in share.tolist()]

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self._order.steps_per_epoch

    def lengths(self, step: int) -> list[int]:
        """Samples in each share that this rank has of a step."""
        return list(map(len, self._shares(step)))

    def weight(self, step: int, place: int = 0) -> float:
        """A share's samples as a multiple of the mean over all shares; 1 where they are even."""
        return self.lengths(step)[place] * self._ranks.count / self.batch

    def _shares(self, step: int) -> list[np.ndarray]:
        return [self._order.indices(step, rank, self._ranks.count) for rank in self._ranks.held]

    def state_dict(self) -> Tree:
        """What decides the order, beside the seed."""
        return {"samples": self._samples, "batch": self.batch}

    def load_state_dict(self, state: Tree) -> None:
        """Make sure that the steps before drew from the same order.

        Raises:
            JobError: they did not.
        """
        for name, now in self.state_dict().items():
            if state[name] != now:
                raise JobError(
                    f"the checkpoint was made with {name} = {state[name]}, not {now}: go on with that, or start over "
                    "with --fresh"
                )
