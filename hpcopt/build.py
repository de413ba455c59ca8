"""From a job to the objects that train: the one way, for training, the dry run, benchmarks and tests."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm.agreement import differences
from hpcopt.comm.device import clock_of
from hpcopt.comm.world import World
from hpcopt.errors import DataError, JobError
from hpcopt.held import require_attributes
from hpcopt.job import Job
from hpcopt.plugins import LOADED
from hpcopt.randomness import draws_kept, seed_all
from hpcopt.shapes.batch import require_batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, Task
from hpcopt.shapes.workload import Workload
from hpcopt.twice import DifferentiableTwice
from hpcopt.workloads.on_device import on_device
from hpcopt.workloads.own.theirs import theirs
from hpcopt.workloads.own.user_code import require_network

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
    clock = clock_of(device, job.solver.phases)
    context = Context(
        world=world,
        exchange=job.exchange,
        device=device,
        clock=clock,
        run_seed=job.run.seed,
        virtual=job.run.virtual(world),
    )
    with world.together():
        workload = job.workload.made(context)
        if verify:
            workload.verify(world.rank, world.size)
    job.check_ranks(world.size)
    require_attributes(workload, Workload)
    require_same_data(world, workload)
    if context.virtual is not None and workload.state_dict() is not None:
        raise JobError(
            '[run] reproducible = "any ranks": these data are a stream that each rank reads on, and no function of the '
            "number of the step: leave it out"
        ).everywhere()
    if LOADED:
        with world.together():
            require_network(workload.model, "the network")
            try_once(workload)
    workload = on_device(workload, device, job.workload.precision)
    if job.workload.compile:
        workload.model.compile()
    if "product" in job.solver.asks:
        with world.together():
            try_twice(workload)
    seed_all(job.run.seed * 1_000_003 + world.rank)  # what a rank draws from here on is its own
    context = replace(context, steps=job.run.total_steps(workload.steps_per_epoch))
    solver = job.solver.build(Task(workload.model, workload.loss, workload.by_index(), workload.simulation()), context)
    require_attributes(solver, Solver)
    return Built(context, workload, solver)


def one_sample(workload: Workload) -> Any:
    """A batch of one test sample.

    Raises:
        DataError: there is none.
    """
    batch = require_batch(next(iter(workload.test_batches(0, 1)), None), "test_batches")
    if not len(batch):
        raise DataError("the workload has no test samples")
    return batch.split(len(batch))[0]


def try_once(workload: Workload) -> None:
    """Go through network and loss once, where parts of a job are somebody's: what does not fit together is a message
    now, and no traceback later.

    Raises:
        JobError: it does not.
    """
    model, what = workload.model, "one test sample through the network and the loss"
    training = model.training
    with draws_kept(), theirs(what, JobError):
        loss = workload.loss(model.eval(), one_sample(workload))
        model.train(training)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise JobError(f"{what} gave {type(loss).__name__}, not a tensor of one number, the mean")
    if not loss.requires_grad:
        raise JobError(
            f"{what} gave a loss without a gradient: does the network detach it, or a module switch them off?"
        )


def try_twice(workload: Workload) -> None:
    """Differentiate the loss of one test sample twice, down to every leaf: by ``autograd.grad``, functions that can be
    differentiated once only would pass for constants.

    Raises:
        JobError: something in the loss has no second derivative.
    """
    model = workload.model
    training, parameters = model.training, [p for p in model.parameters() if p.requires_grad]
    with draws_kept():
        with DifferentiableTwice():
            loss = workload.loss(model.eval(), one_sample(workload))
        model.train(training)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        curved = [g for g in gradients if g is not None and g.grad_fn is not None]
        try:
            torch.autograd.backward(curved, [torch.ones_like(g) for g in curved])
        except RuntimeError as cause:
            said = str(cause).splitlines()[0]
            raise JobError(
                f"[solver.optimizer] asks for the second derivative of the loss, which has none: {said}; use adamw"
            ) from cause
    model.zero_grad()


def require_same_data(world: World, workload: Workload) -> None:
    """Check that all ranks have opened data of the same size: each takes its share of what all have. Collective.

    Raises:
        DataError: on all ranks; the message says who has how many samples.
    """
    said = differences(world.all_gather, f"{workload.train_samples} to train on, {workload.test_samples} to test on")
    if said is not None:
        raise DataError(
            f"the ranks have opened data sets of different sizes, in samples: {said}; each takes its share of what all "
            "have, so let every rank open the whole of the same data"
        ).everywhere()
