"""A job once more, in plain torch on one rank."""

from pathlib import Path

import torch

from hpcopt.job import read_job
from hpcopt.shapes.context import Context


def serial_losses(job_file: Path, steps: int, *settings: str) -> list[float]:
    """Losses of a job whose optimizer is SGD; the settings are ``--set``'s."""
    job = read_job(job_file, settings)
    workload, sgd = job.workload.build(Context(run_seed=job.run.seed)), job.solver.optimizer
    optimizer = torch.optim.SGD(workload.model.parameters(), lr=sgd.lr, momentum=sgd.momentum)
    result = []
    for _, batch in zip(range(steps), workload.train_batches(0, 1, 0), strict=False):
        optimizer.zero_grad()
        loss = workload.loss(workload.model, batch)
        loss.backward()
        optimizer.step()
        result.append(loss.item())
    return result
