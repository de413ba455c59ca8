"""Small instances and networks for them, and short trainings on threads."""

import copy
from functools import cache

import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.optim import SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.amp.solver import Amp, AmpConfig
from hpcopt.testing.problem import flat
from hpcopt.workloads import ArithmeticTreesConfig, GraphDistanceConfig, ListReductionConfig

LISTS = ListReductionConfig(batch=5, train=40, hidden=6)
TREES = ArithmeticTreesConfig(batch=5, train=40, hidden=6)
GRAPHS = GraphDistanceConfig(batch=5, train=40, hidden=6)
SGD = SgdConfig(lr=0.05, momentum=0.5)
STEPS = 4


@cache
def workload(config):
    return config.build(Context(run_seed=1))


def batches(config, steps=STEPS, start=0):
    source = workload(config).train_batches(0, 1, start)
    return [next(source) for _ in range(steps)]


def made(config: AmpConfig, data, world=None, steps=20) -> Amp:
    """A solver of a fresh copy of the workload's network."""
    task = Task(copy.deepcopy(workload(data).model), workload(data).loss)
    return config.build(task, Context(steps=steps) if world is None else Context(world=world, steps=steps))


def trained(config: AmpConfig, data, size=1, steps=STEPS):
    """Each rank's parameters after some steps, its stats, and rank 0's staleness of all nodes."""
    wholes = batches(data, steps)

    def program(transport):
        world = World(transport)
        solver = made(config, data, world)
        stats = [solver.step(batch) for batch in wholes]
        solver.gather()
        return flat(solver.model), stats, stats[-1].tables["staleness"].columns(world)

    return run_ranks(size, program)


def sequential(data, indices=None):
    """The parameters and losses of SGD with one instance a step, by autograd."""
    model, loss = copy.deepcopy(workload(data).model), workload(data).loss
    optimizer = SGD.build(model.parameters())
    losses = []
    instances = [one for batch in batches(data) for one in batch.split(len(batch))]
    for one in instances if indices is None else [instances[k] for k in indices]:
        optimizer.zero_grad()
        value = loss(model, one)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return model, torch.tensor(losses).view(-1, data.batch if indices is None else 1).mean(1)
