"""A network that one rank has not the memory for trains in parts."""

import itertools
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hpcopt.comm.world import World, alone
from hpcopt.models.graph.networks import GcnConfig
from hpcopt.optim import AdamWConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.gist.solver import GistConfig
from hpcopt.workloads.node_classification import NodeClassificationConfig
from tests.graph_data import write_graph

WIDTH, STEPS, MEMORY_BYTES = 3072, 4, 150 << 20


@contextmanager
def memory_for(more_bytes: int):
    """Let this process have so much more than it has now."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def trained(config: GistConfig, world: World, data: Path, width: int = WIDTH) -> tuple[list[float], float]:
    """Losses, and the most that this rank held of the whole's values."""
    model = GcnConfig(hidden=(width, width))
    workload = NodeClassificationConfig(data=data, model=model, allocate=not config.ultra_wide).build(Context())
    solver = config.build(Task(workload.model, workload.loss), Context(world=world, steps=STEPS))
    losses, held, whole = [], 0, sum(p.numel() for p in workload.model.parameters())
    for batch in itertools.islice(workload.train_batches(solver.data_rank, solver.data_size, 0), STEPS):
        losses.append(solver.step(batch).loss)
        held = max(held, sum(x.numel() for cell in solver.cells for x in cell.held.values()))
    return losses, held / whole


@pytest.mark.parallel(2)
def test_two_ranks_train_what_neither_could_hold(shared_tmp_path):
    from hpcopt.comm.mpi import MpiTransport

    world = World(MpiTransport())
    if world.rank == 0:
        write_graph(shared_tmp_path / "graph", nodes=60)
    world.barrier()
    data, optimizer = shared_tmp_path / "graph", AdamWConfig(lr=1e-3)
    wide = GistConfig(every=2, ultra_wide=True, optimizer=optimizer)
    trained(wide, world, data, width=8)  # loads what takes memory of its own
    with memory_for(MEMORY_BYTES):
        losses, held = trained(wide, world, data)
    assert torch.tensor(losses).isfinite().all() and len(losses) == STEPS
    assert 0.5 <= held <= 1.1 / 2
    with memory_for(MEMORY_BYTES), pytest.raises(RuntimeError, match="allocate memory"):
        trained(GistConfig(parts=1, optimizer=optimizer), alone(), data)
    world.close()
