"""A dry run: what a job would do on so many ranks, without starting any."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpcopt.build import build, one_sample
from hpcopt.comm import gpu_aware
from hpcopt.comm.device import planned_device
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.elastic.copies import planned
from hpcopt.job import Job
from hpcopt.prepare import prepare_if_missing
from hpcopt.shapes.solver import Solver
from hpcopt.shapes.workload import Workload
from hpcopt.trainer.resume import Position
from hpcopt.trainer.saver import own_part, shared_part


def plan(job: Job, ranks: int) -> str:
    """The resolved job, and its plan, as text."""
    world = World(RehearsalTransport(ranks, elastic=job.run.elastic))
    prepare_if_missing(job.workload.folder, world)
    built = build(job, world, verify=False)
    workload, solver, batch = built.workload, built.solver, built.workload.batch
    flops = sample_flops(workload)
    least, most = batch // solver.data_size, -(-batch // solver.data_size)
    lines = {
        "ranks": f"{ranks}",
        "device": planned_device(job.run.device),
        **_gpu_path(job, ranks),
        "data": f"{_count(workload.train_samples)} training and {_count(workload.test_samples)} test samples",
        "batch": f"{batch} samples, {least}{f' or {most}' if most > least else ''} a rank",
        **_virtual(built.context.virtual, batch),
        "steps": f"{built.steps:,}, {_count(workload.steps_per_epoch)} an epoch",
        "computation": f"{flops:.3g} operations a sample, forward and backward",
        **{r.name: text for r in job.workload.rewrites if (text := r.plan(workload.model))},
        **solver.plan(flops * most),
        **_copies(job, solver, ranks),
    }
    under = "\n" + 17 * " "
    table = "\n".join(f"  {name:<14} {text.replace(chr(10), under)}" for name, text in lines.items())
    return f"{job.as_toml()}\nplan\n{table}"


def _virtual(ranks: VirtualRanks | None, batch: int) -> dict[str, str]:
    """What makes a step on virtual ranks longer than an ordinary one, on the rank that has the most of them."""
    if ranks is None:
        return {}
    samples, held = batch / ranks.count, len(ranks.held)
    passes = f"{held} passes a rank of {samples:.3g} samples each, in place of 1 of {held * samples:.3g}"
    return {"virtual ranks": f"{ranks.count}: {passes}; what a pass costs whatever its samples comes {held} times"}


def _copies(job: Job, solver: Solver, ranks: int) -> dict[str, str]:
    """What a rank keeps in memory so that others may be lost."""
    if not job.run.elastic:
        return {}
    shared, own = shared_part(Position(), solver), own_part(solver, None)
    return {"copies": planned(shared, own, min(job.run.buddies, ranks - 1), job.run.copy_every)}


def _gpu_path(job: Job, ranks: int) -> dict[str, str]:
    """Whether MPI takes tensors from GPUs, where that matters and this host has one to try."""
    matters = ranks > 1 and job.run.backend == "mpi" and job.run.device != "cpu"
    return {"MPI": gpu_aware.planned(job.run.gpu_aware_mpi)} if matters and torch.cuda.device_count() else {}


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def sample_flops(workload: Workload) -> float:
    """Floating-point operations of one sample's matrix products and convolutions, forward and backward (which has two
    for each one forward), found by going forward once.
    """
    sample = one_sample(workload)
    training = workload.model.training
    workload.model.eval()  # batch normalisation takes no single sample otherwise
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.loss(workload.model, sample)
    workload.model.train(training)
    return 3.0 * float(counter.get_total_flops())
