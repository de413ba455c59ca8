"""A run on virtual ranks (``hpcopt.comm.virtual``): what each has of the data, the part that it would have as one of so
many ranks, and random numbers of its own; and the digest by which ranks, and runs, find that they are the same.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from torch import nn

from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.randomness import drawing_by
from hpcopt.shapes.batch import VirtualBatch, require_batch
from hpcopt.shapes.workload import Workload

DIGEST = "parameters.digest"  # the scalar by which runs on different numbers of ranks can be compared
DIGEST_EVERY = 50  # steps


def virtual_batches(workload: Workload, ranks: VirtualRanks, start: int) -> Iterator[VirtualBatch]:
    """Give this rank's parts of every global batch, for ever, from step ``start`` on.

    Raises:
        DataError: the workload gives no batch.
    """
    parts = [workload.train_batches(virtual_rank, ranks.count, start) for virtual_rank in ranks.held]
    for step in itertools.count(start):
        own = []
        for virtual_rank, part in zip(ranks.held, parts, strict=True):
            with nullcontext() if workload.ahead else drawing_by(ranks.seed_of(virtual_rank, step, "data")):
                own.append(require_batch(next(part, None), f"train_batches, for step {step + 1},"))
        yield VirtualBatch(own, [ranks.seed_of(virtual_rank, step, "model") for virtual_rank in ranks.held])


def digest(world: World, models: Iterable[nn.Module]) -> float:
    """Of parameters and buffers, as a number of 52 bits that float64 has exactly. Collective.

    Raises:
        PeerError: on all ranks: they are not the same; the message names the ranks.
    """
    tensors = [x for model in models for x in model.state_dict().values()]
    return float(int(world.require_same(tensors, "the parameters")[:13], 16))
