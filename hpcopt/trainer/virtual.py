"""What virtual ranks (``hpcopt.comm.virtual``) have of the data: each the part that it would have as one of so many
ranks, and random numbers of its own.
"""

import itertools
from collections.abc import Iterator

from hpcopt.comm.virtual import VirtualRanks
from hpcopt.randomness import drawing_by
from hpcopt.shapes.batch import VirtualBatch, require_batch
from hpcopt.shapes.workload import Workload


def virtual_batches(workload: Workload, ranks: VirtualRanks, start: int) -> Iterator[VirtualBatch]:
    """Give this rank's parts of every global batch, for ever, from step ``start`` on.

    Raises:
        DataError: the workload gives no batch.
    """
    parts = [workload.train_batches(virtual_rank, ranks.count, start) for virtual_rank in ranks.held]
    for step in itertools.count(start):
        own = []
        for virtual_rank, part in zip(ranks.held, parts, strict=True):
            with drawing_by(ranks.seed_of(virtual_rank, step, "data")):
                own.append(require_batch(next(part, None), f"train_batches, for step {step + 1},"))
        yield VirtualBatch(own, [ranks.seed_of(virtual_rank, step, "model") for virtual_rank in ranks.held])
