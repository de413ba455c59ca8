"""Random collectives of random sizes, with ranks that are late at random: none hangs, all are right, memory stays flat.

HPCOPT_STRESS=10000 makes it as many; a few dozen by default.
"""

import ctypes
import os
import random
import time
from pathlib import Path

import pytest
import torch

from hpcopt.comm import dense, doubling, ring, two_phase, vote
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import connect
from hpcopt.compress import QSGD, Dense, Half, TopK

COUNT = int(os.environ.get("HPCOPT_STRESS", "60"))
LARGEST = 40_000
WARM_UP = 100  # collectives after which memory may no longer grow
MAY_GROW_BYTES = 4_000_000  # none is seen


def check(t: Transport, by_nodes: Hierarchy, count: int) -> int:
    """The plan is drawn from a seed that all ranks share, the lateness from one of their own.

    Returns:
        bytes by which this process has grown after the first ``WARM_UP`` collectives.
    """
    plan, late = random.Random(1), random.Random(100 + t.rank)
    settled_bytes = resident_bytes()
    for k in range(count):
        n = plan.choice([0, 1, plan.randrange(100), plan.randrange(LARGEST)])
        kind = plan.choice(["ring", "doubling", "long", "half", "dense", "qsgd", "topk", "vote", "nodes"])
        if late.random() < 0.1:
            time.sleep(0.003 * late.random())
        x = torch.randint(-50, 50, (t.size, n), generator=torch.Generator().manual_seed(k)).float()
        own, total = x[t.rank].clone(), x.sum(0)
        seeds = {"sender_seed": 2 * k * t.size + t.rank, "owner_seed": 2 * k + 1}
        if kind == "ring":
            assert torch.equal(ring.all_reduce(t, own, segment_bytes=plan.choice([256, 65536])), total)
        elif kind == "doubling":
            assert torch.equal(doubling.all_reduce(t, own), total)
        elif kind == "long":
            assert torch.equal(dense.long(t, own), total)
        elif kind == "half":
            torch.testing.assert_close(ring.all_reduce(t, own, wire=torch.bfloat16), total, rtol=0.05, atol=1.0)
        elif kind == "dense":
            assert torch.equal(two_phase.all_reduce(t, own, Dense(), **seeds), total)
        elif kind == "qsgd":
            error = two_phase.all_reduce(t, own, QSGD(bits=8), **seeds) - total
            assert (error.abs() <= 5 + 0.05 * total.abs()).all()
        elif kind == "topk":
            sent, decided = torch.zeros(n), torch.zeros(n)
            residuals = {"sender_residual": sent, "owner_residual": decided}
            two_phase.all_reduce(t, own, TopK(fraction=0.1, values=Half()), **seeds, **residuals)
            assert own.count_nonzero() <= 0.1 * n + t.size  # of each rank's stretch, rounded up
            assert torch.equal(own + dense.all_reduce(t, sent + decided), total)  # what is not there is owed
        else:
            outcome = by_nodes.vote(own) if kind == "nodes" else vote.all_reduce(t, own)
            assert torch.equal(outcome, torch.where(2 * (x < 0).sum(0) > t.size, -1.0, 1.0))
        if k == WARM_UP:
            settled_bytes = resident_bytes()
    return resident_bytes() - settled_bytes


def resident_bytes() -> int:
    """Memory of this process that is in use: what earlier tests have freed would hide what is lost now."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("size", [3, 8])
def test_on_threads(size):
    run_ranks(size, lambda t: check(t, Hierarchy(t, t.rank // 2), min(COUNT, WARM_UP)))


def test_memory_stays_flat():
    """A message lost by each collective would be 13 MB."""
    grown_bytes = run_ranks(3, lambda t: check(t, Hierarchy(t, t.rank // 2), WARM_UP + 200))
    assert max(grown_bytes) < MAY_GROW_BYTES


@pytest.mark.parallel([4])
def test_on_mpi():
    transport = connect("mpi").transport
    check(transport, Hierarchy(transport, transport.rank // 2), COUNT)
