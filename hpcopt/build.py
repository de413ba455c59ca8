"""From a job to the objects that train: the one way, for training, the dry run, benchmarks and tests."""

from dataclasses import dataclass, replace

import torch

from hpcopt.comm.world import World
from hpcopt.exchange import RingConfig
from hpcopt.job import Job
from hpcopt.phases import PhaseClock
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, Task
from hpcopt.shapes.workload import Workload
from hpcopt.workloads.on_device import on_device

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Built:
    """What a job is made of, on one rank."""

    context: Context
    workload: Workload
    solver: Solver

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.context.total_steps


def build(job: Job, world: World, device: torch.device = CPU, *, verify: bool = True) -> Built:
    """Open the data, make the model and the solver. Collective.

    Args:
        verify: let each rank check its share of the data files.

    Raises:
        DataError, JobError: the data, the ranks or the sections do not suit each other.
    """
    exchange = job.exchange or RingConfig()  # a solver that needs none does not look
    context = Context(
        world=world, exchange=exchange, device=device, clock=PhaseClock(job.solver.phases), run_seed=job.run.seed
    )
    with world.together():
        workload = job.workload.build(context)
        if verify:
            workload.verify(world.rank, world.size)
    job.check_ranks(world.size)
    workload = on_device(workload, device)
    torch.manual_seed(job.run.seed * 1_000_003 + world.rank)  # what a rank draws from here on is its own
    context = replace(context, steps=job.run.total_steps(workload.steps_per_epoch))
    return Built(context, workload, job.solver.build(Task(workload.model, workload.loss), context))
