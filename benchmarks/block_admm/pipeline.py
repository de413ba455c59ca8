"""Four blocks on four ranks, 784-512-512-512-10 on Fashion-MNIST: M = 4 batches in flight against M = 1.

    mpirun -n 4 python -m benchmarks.block_admm.pipeline [--epochs 2] [--in-flight 1 4] [--codec bf16]

Prints throughput, the share of time that each rank waited for a message, the bytes of each boundary, and the accuracy.
"""

import argparse
import itertools
import time

import torch
from torch import nn

from benchmarks.block_admm.bench import LOSS, Images, fashion_mnist, record, recorded
from hpcopt.comm.world import World, connect
from hpcopt.compress import Half
from hpcopt.exchange import RingConfig
from hpcopt.optim import ScheduleConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.phases import PhaseClock
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig

WIDTHS, BATCH, WARM_STEPS = (784, 512, 512, 512, 10), 128, 10


def run(world: World, train: Images, test: Images, steps: int, in_flight: int, coded: bool) -> dict:
    """Train once; give every rank's figures on all ranks. Collective."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model, clock = nn.Sequential(*layers[:-1]), PhaseClock()
    config = BlockAdmmConfig(
        stages=world.size,
        in_flight=in_flight,
        form="online",
        rho=100,
        optimizer=AdamWConfig(lr=1e-3, weight_decay=0),
        schedule=ScheduleConfig(name="cosine"),
        codec=Half() if coded else None,
    )
    solver = config.build(model, LOSS, world, RingConfig(), steps, clock)
    start_s = 0.0
    for step, batch in enumerate(train.batches(BATCH, steps, seed=0)):
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
        "sent_bytes_per_step": everyones[:, 2].tolist(),
        "accuracy": test.accuracy(model),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--epochs", type=float, default=2)
    p.add_argument("--in-flight", type=int, nargs="+", default=[1, 4])
    p.add_argument("--codec", choices=["none", "bf16"], default="none")
    p.add_argument("--repeats", type=int, default=1)
    choice = p.parse_args()
    torch.set_num_threads(1)
    world = connect()
    train, test = fashion_mnist()
    first = None
    for repeat, in_flight in itertools.product(range(choice.repeats), choice.in_flight):
        steps = round(choice.epochs * (len(train.y) // BATCH))
        figures = run(world, train, test, steps, in_flight, choice.codec != "none")
        first = first or figures["samples_per_s"]
        if world.rank == 0:
            figures["ratio"] = figures["samples_per_s"] / first
            record("pipeline", f"{world.nodes} hosts, M={in_flight}, {choice.codec}", repeat, figures)
    world.close()


def table() -> None:
    print("| where | samples/s | idle share of ranks 0 to 3 | KiB a step sent by each rank | accuracy |")
    print("|---|---|---|---|---|")
    for where, runs in recorded("pipeline").items():
        for run in runs:
            idle = ", ".join(f"{share:.0%}" for share in run["idle"])
            kib = ", ".join(f"{sent / 1024:.0f}" for sent in run["sent_bytes_per_step"])
            rate = f"{run['samples_per_s']:.0f} ({run['ratio']:.2f} x)"
            print(f"| {where} | {rate} | {idle} | {kib} | {run['accuracy']:.4f} |")


if __name__ == "__main__":
    main()
