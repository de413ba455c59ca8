"""Four blocks on four ranks, 784-512-512-512-10 on Fashion-MNIST: four batches in flight, or four micro-batches of one,
against one batch at a time.

    mpirun -n 4 python -m benchmarks.block_admm.pipeline [--epochs 1] [--in-flight four-parts] [--codec bf16]
    sbatch --exclusive benchmarks/block_admm/pipeline.sh                       the same on four hosts
    python -m benchmarks.block_admm.pipeline --table

Records throughput, the share of time that each rank waited for a message, the bytes of a boundary, and the accuracy.
"""

import argparse
import itertools
import time
from typing import Any

import torch
from torch import nn

from benchmarks.block_admm.bench import LOSS, Images, fashion_mnist, record, recorded, spread
from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.world import World, connect
from hpcopt.compress import Half
from hpcopt.exchange import RingConfig
from hpcopt.optim import CosineConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.phases import PhaseClock
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig

WIDTHS, BATCH, WARM_STEPS = (784, 512, 512, 512, 10), 128, 10
FLIGHTS = {  # batches in flight, micro-batches that each is cut into
    "one-batch": (1, 1),
    "four-parts": (1, 4),
    "four-batches": (4, 1),
}
LABELS = {"one-batch": "1 batch", "four-parts": "4 parts of 1 batch", "four-batches": "4 batches"}


def run(
    world: World, train: Images, test: Images, *, steps: int, in_flight: int, parts: int, seed: int, coded: bool
) -> dict[str, Any]:
    """Train once; give every rank's figures on all ranks. Collective."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model, clock = nn.Sequential(*layers[:-1]), PhaseClock()
    config = BlockAdmmConfig(
        stages=world.size,
        in_flight=in_flight,
        accumulate=parts,
        form="online",
        rho=100,
        optimizer=AdamWConfig(lr=1e-3, weight_decay=0),
        schedule=CosineConfig(),
        codec=Half() if coded else None,
    )
    solver = config.build(Task(model, LOSS), Context(exchange=RingConfig(), world=world, steps=steps, clock=clock))
    start_s = 0.0
    for step, batch in enumerate(train.batches(BATCH, steps, seed)):
        if step == WARM_STEPS:
            world.barrier()
            clock.lap()
            world.traffic.lap()
            start_s = time.perf_counter()
        solver.step(batch)
    elapsed_s, phases, traffic = time.perf_counter() - start_s, clock.lap(), world.traffic.lap()
    solver.gather()
    mine = torch.tensor([elapsed_s, phases["exchange"] / elapsed_s, traffic.sent_bytes / (steps - WARM_STEPS)])
    everyones = world.all_gather(mine.double())
    return {
        "samples_per_s": BATCH * (steps - WARM_STEPS) / float(everyones[:, 0].max()),
        "idle": everyones[:, 1].tolist(),
        "boundary_bytes_per_step": float(everyones[:, 2].sum()) / (world.size - 1),  # all boundaries are equally wide
        "accuracy": test.accuracy(model),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--epochs", type=float, default=1)
    p.add_argument("--in-flight", nargs="+", choices=list(FLIGHTS), default=list(FLIGHTS))
    p.add_argument("--codec", choices=["none", "bf16"], default="none")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--table", action="store_true", help="print what is recorded")
    choice = p.parse_args()
    if choice.table:
        table()
        return
    torch.set_num_threads(1)
    world = connect()
    train, test = fashion_mnist()
    steps = round(choice.epochs * (len(train.y) // BATCH))
    where = f"{world.nodes} hosts, {choice.codec}, {choice.epochs:g} epochs"
    for seed, flight in itertools.product(choice.seeds, choice.in_flight):
        in_flight, parts = FLIGHTS[flight]
        coded = choice.codec != "none"
        figures = run(world, train, test, steps=steps, in_flight=in_flight, parts=parts, seed=seed, coded=coded)
        if world.rank == 0:
            record("pipeline", flight, where, seed, figures, tune=False)
    world.close()
    leave_exit_code(0)


def table() -> None:
    print("| hosts, codec, training | in flight | samples/s, mean (range) | idle, ranks 0 to 3 | KiB/step | accuracy |")
    print("|---|---|---|---|---|---|")
    results = recorded("pipeline")
    for where in dict.fromkeys(run["setting"] for runs in results.values() for run in runs):
        for flight, label in LABELS.items():
            runs = [run for run in results.get(flight, []) if run["setting"] == where]
            if runs:
                rate = spread([run["samples_per_s"] for run in runs], 0)
                shares = zip(*(run["idle"] for run in runs), strict=True)
                idle = ", ".join(f"{sum(of_rank) / len(runs):.0%}" for of_rank in shares)
                kib = f"{runs[0]['boundary_bytes_per_step'] / 1024:.0f}"
                print(f"| {where} | {label} | {rate} | {idle} | {kib} | {spread([r['accuracy'] for r in runs])} |")


if __name__ == "__main__":
    main()
