"""Four blocks on four ranks, 784-512-512-512-10 on Fashion-MNIST: M = 4 batches in flight against M = 1.

    mpirun -n 4 python -m benchmarks.block_admm.pipeline --steps 300         throughput, idle share, bytes of a boundary
    python -m benchmarks.block_admm.pipeline --accuracy --seeds 0 1 2        what M costs: the same ranks as threads
    python -m benchmarks.block_admm.pipeline --table

The solver does the same arithmetic in the same order however fast messages are, so accuracy needs no real network.
"""

import argparse
import itertools
import time

import torch
from torch import nn

from benchmarks.block_admm.bench import LOSS, Images, fashion_mnist, record, recorded, spread
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, connect
from hpcopt.compress import Half
from hpcopt.exchange import RingConfig
from hpcopt.optim import ScheduleConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.phases import PhaseClock
from hpcopt.solvers.block_admm.solver import BlockAdmm, BlockAdmmConfig

WIDTHS, BATCH, WARM_STEPS, EPOCHS, RANKS = (784, 512, 512, 512, 10), 128, 10, 3, 4


def solver(world: World, seed: int, steps: int, in_flight: int, clock: PhaseClock, *, coded: bool) -> BlockAdmm:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    config = BlockAdmmConfig(
        stages=world.size,
        in_flight=in_flight,
        form="online",
        rho=100,
        optimizer=AdamWConfig(lr=1e-3, weight_decay=0),
        schedule=ScheduleConfig(name="cosine"),
        codec=Half() if coded else None,
    )
    return config.build(nn.Sequential(*layers[:-1]), LOSS, world, RingConfig(), steps, clock)


def measure(world: World, train: Images, steps: int, in_flight: int, *, coded: bool) -> dict:
    """Time steps; give every rank's figures on all ranks. Collective."""
    clock = PhaseClock()
    run = solver(world, 0, steps, in_flight, clock, coded=coded)
    start_s = 0.0
    for step, batch in enumerate(train.batches(BATCH, steps, seed=0)):
        if step == WARM_STEPS:
            world.barrier()
            clock.lap()
            world.traffic.lap()
            start_s = time.perf_counter()
        run.step(batch)
    elapsed_s, phases, traffic = time.perf_counter() - start_s, clock.lap(), world.traffic.lap()
    run.gather()
    mine = torch.tensor([elapsed_s, phases["exchange"] / elapsed_s, traffic.sent_bytes / (steps - WARM_STEPS)])
    everyones = world.all_gather(mine.double())
    return {
        "samples_per_s": BATCH * (steps - WARM_STEPS) / float(everyones[:, 0].max()),
        "idle": everyones[:, 1].tolist(),
        "boundary_bytes_per_step": float(everyones[:, 2].sum()) / (world.size - 1),  # all boundaries are equally wide
    }


def learn(train: Images, test: Images, epochs: int, in_flight: int, seed: int) -> dict:
    """Train on ranks that are threads; give the accuracy after each epoch."""
    per_epoch = len(train.y) // BATCH

    def program(transport) -> list[float]:
        run = solver(World(transport), seed, epochs * per_epoch, in_flight, PhaseClock(), coded=False)
        accuracies = []
        for step, batch in enumerate(train.batches(BATCH, epochs * per_epoch, seed), start=1):
            run.step(batch)
            if step % per_epoch == 0:
                run.gather()
                accuracies.append(test.accuracy(run.model) if transport.rank == 0 else 0.0)
        return accuracies

    return {"accuracy": run_ranks(RANKS, program)[0], "epochs": epochs}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--in-flight", type=int, nargs="+", default=[1, 4])
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--repeats", type=int, default=3, help="in turns, so that a slow minute hits all")
    p.add_argument("--codec", choices=["none", "bf16"], default="none")
    p.add_argument("--accuracy", action="store_true", help="train for accuracy, not for time")
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    p.add_argument("--table", action="store_true")
    choice = p.parse_args()
    torch.set_num_threads(1)
    if choice.table:
        table()
    elif choice.accuracy:
        data = fashion_mnist()
        for seed, in_flight in itertools.product(choice.seeds, choice.in_flight):
            figures = learn(*data, EPOCHS, in_flight, seed)
            record("pipeline-accuracy", f"M = {in_flight}", "", seed, figures, tune=False)
    else:
        world = connect()
        train, _ = fashion_mnist(20000)
        for repeat, in_flight in itertools.product(range(choice.repeats), choice.in_flight):
            figures = measure(world, train, choice.steps, in_flight, coded=choice.codec != "none")
            if world.rank == 0:
                where = f"{world.nodes} hosts" if world.nodes > 1 else "one host"
                record("pipeline", f"M = {in_flight}", f"{where}, {choice.codec}", repeat, figures, tune=False)
        world.close()


def table() -> None:
    print("| where, codec | in flight | samples/s, median of | idle share of ranks 0 to 3 | KiB a step and boundary |")
    print("|---|---|---|---|---|")
    runs = [run for of_method in recorded("pipeline").values() for run in of_method]
    for setting in sorted({run["setting"] for run in runs}):
        groups = {
            method: sorted((r for r in runs if (r["setting"], r["method"]) == (setting, method)), key=samples_per_s)
            for method in recorded("pipeline")
        }
        medians = {method: group[len(group) // 2] for method, group in groups.items() if group}
        first = medians["M = 1"]
        for method, run in medians.items():
            idle = ", ".join(f"{share:.0%}" for share in run["idle"])
            rate = f"{run['samples_per_s']:.0f} ({run['samples_per_s'] / first['samples_per_s']:.2f} x)"
            kib = f"{run['boundary_bytes_per_step'] / 1024:.0f}"
            print(f"| {setting} | {method} | {rate}, {len(groups[method])} | {idle} | {kib} |")


def accuracy_table() -> None:
    print("| batches in flight | seeds | test accuracy after each epoch, mean | at the end, mean (range) |")
    print("|---|---|---|---|")
    for method, runs in recorded("pipeline-accuracy").items():
        epochs = " ".join(
            f"{sum(column) / len(runs):.4f}" for column in zip(*(run["accuracy"] for run in runs), strict=True)
        )
        print(f"| {method} | {len(runs)} | {epochs} | {spread([run['accuracy'][-1] for run in runs])} |")


def samples_per_s(run: dict) -> float:
    return float(run["samples_per_s"])


if __name__ == "__main__":
    main()
