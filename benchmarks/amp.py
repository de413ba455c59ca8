"""Instances in flight: what they do to accuracy, and how many instances a second they give.

    python benchmarks/amp.py accuracy --workload graph_distance     # accuracy after each epoch, by cap; one process
    mpirun -n 2 python benchmarks/amp.py speed --workload list_reduction    # instances a second, cap by cap in turn

Rows are lines of JSON. Accuracy stands beside the same epochs of sequential SGD by autograd, one instance a step.
"""

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Iterator

import torch

from hpcopt.comm.world import World, alone, connect
from hpcopt.families import WORKLOADS
from hpcopt.optim import OptimizerConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.shapes.workload import Workload
from hpcopt.solvers.amp.solver import Amp, AmpConfig
from hpcopt.trainer.loop import evaluate


def built(options: argparse.Namespace, seed: int) -> Workload:
    """The workload."""
    sizes = {"train": options.train, "test": options.test, "batch": options.batch, "hidden": options.hidden}
    return WORKLOADS.find(options.workload)(**sizes).build(Context(run_seed=seed))


def optimizer(options: argparse.Namespace) -> OptimizerConfig:
    """Of every node, and of sequential SGD."""
    return AdamWConfig(lr=options.lr, weight_decay=0)


def solver(options: argparse.Namespace, workload: Workload, cap: int, replicas: int, world: World) -> Amp:
    """The solver on a fresh copy of the workload's network."""
    config = AmpConfig(
        max_active_keys=cap,
        min_update_frequency=options.gradients,
        replicas=replicas,
        optimizer=optimizer(options),
    )
    steps = options.epochs * (workload.steps_per_epoch or 0)
    return config.build(Task(copy.deepcopy(workload.model), workload.loss), Context(world=world, steps=steps))


def sequential(options: argparse.Namespace, workload: Workload) -> Iterator[tuple[torch.nn.Module, float]]:
    """The model and the processor's seconds after each epoch of one step an instance, by autograd."""
    model = copy.deepcopy(workload.model)
    steps = optimizer(options).build(model.parameters())
    batches = workload.train_batches(0, 1, 0)
    for _ in range(options.epochs):
        begun_s = time.process_time()
        for batch in itertools.islice(batches, workload.steps_per_epoch):
            for one in batch.split(len(batch)):
                steps.zero_grad()
                workload.loss(model, one).backward()
                steps.step()
        yield model, time.process_time() - begun_s


def asynchronous(options: argparse.Namespace, workload: Workload, cap: int) -> Iterator[tuple[torch.nn.Module, float]]:
    """Likewise, with so many instances in flight."""
    amp = solver(options, workload, cap, 1, alone())
    batches = workload.train_batches(0, 1, 0)
    for _ in range(options.epochs):
        begun_s = time.process_time()
        for batch in itertools.islice(batches, workload.steps_per_epoch):
            amp.step(batch)
        amp.gather()
        yield amp.model, time.process_time() - begun_s


def accuracy(options: argparse.Namespace) -> None:
    """Print accuracies after each epoch."""
    for seed in options.seeds:
        workload = built(options, seed)
        for cap in (0, *options.caps):
            run = asynchronous(options, workload, cap) if cap else sequential(options, workload)
            scores, cpu_s = [], 0.0
            for model, epoch_s in run:
                scores.append(round(evaluate(alone(), workload, model)["test_accuracy"], 4))
                cpu_s += epoch_s
            row = {"workload": options.workload, "seed": seed, "cap": cap, "accuracy": scores, "cpu_s": round(cpu_s, 2)}
            print(json.dumps(row), flush=True)


def speed(options: argparse.Namespace) -> None:
    """Print instances a second of each cap, measured in turn, medians over the turns."""
    world, workload = connect(), built(options, 0)
    replicas = options.replicas or world.size
    solvers = {cap: solver(options, workload, cap, replicas, world) for cap in options.caps}
    rates: dict[int, list[tuple[float, float]]] = {cap: [] for cap in options.caps}
    batches = workload.train_batches(0, 1, 0)
    for turn in range(options.turns + 1):  # the first warms up
        batch = next(batches)
        for cap, amp in solvers.items():
            world.barrier()
            begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
            amp.step(batch)
            amp.gather()
            (cpu_s,) = world.sum([time.process_time() - begun_cpu_s])
            if turn:
                rates[cap].append((len(batch) / (time.perf_counter() - begun_s), cpu_s / len(batch)))
    if world.rank == 0:
        for cap, found in rates.items():
            rate, cpu_s = (statistics.median(values) for values in zip(*found, strict=True))
            told = {"ranks": world.size, "replicas": replicas, "cap": cap, "turns": options.turns}
            row = {"workload": options.workload, **told, "per_s": round(rate, 2), "cpu_ms": round(1000 * cpu_s, 2)}
            print(json.dumps(row), flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "speed"])
    parser.add_argument("--workload", default="list_reduction")
    parser.add_argument("--caps", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name, default in (("train", 4000), ("test", 1000), ("batch", 100), ("hidden", 64), ("epochs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("gradients", 1), ("turns", 5), ("replicas", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    (accuracy if options.what == "accuracy" else speed)(options)


if __name__ == "__main__":
    main()
