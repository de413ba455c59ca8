"""Leader SGD beside elastic and plain averaging at equal bytes: a small network on pictures, four ranks.

    python benchmarks/leaders.py [--data data/fashion-mnist]            by default the digits

A mean over P ranks carries ``2 (P - 1) 4 d`` bytes over all links, an announcement ``(P - 1) (4 d + 8 P)``; so leaders
are announced about twice as often. Each method has three learning rates and two strengths of its pull; the best on
held-out samples with a held-out seed is trained with three other seeds. Ranks are threads, and bytes are reckoned.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.exchange import RingConfig
from hpcopt.optim import CosineConfig, SgdConfig
from hpcopt.shapes import Context, Task, TensorBatch
from hpcopt.shapes.solver import SolverConfig
from hpcopt.solvers import DataParallelConfig, LeaderConfig, LocalConfig
from hpcopt.store.shards import Shards

RANKS, STEPS, BATCH = 4, 300, 64
RATES, TUNING, SEEDS = (0.03, 0.1, 0.3), 100, (0, 1, 2)


def averaged(every: int, keep: float, lr: float, momentum: float = 0.0) -> LocalConfig:
    outer = SgdConfig(lr=lr, momentum=momentum, nesterov=momentum > 0)
    return LocalConfig(every=every, keep=keep, outer=outer)


# By strength of the pull, where the method has one.
METHODS: dict[str, dict[float, SolverConfig]] = {
    "LSGD, pull at announcements": {c: LeaderConfig(every=8, pull=c, form="round") for c in (0.2, 0.5)},
    "LSGD, pull at every step": {c: LeaderConfig(every=8, pull=c, form="step") for c in (0.03, 0.1)},
    "LSGD, pull in the gradient": {c: LeaderConfig(every=8, pull=c, form="gradient") for c in (0.003, 0.01)},
    "LSGD, leaders of pairs and of all": {
        c: LeaderConfig(every=8, global_every=32, group=2, pull=c, global_pull=c, form="round") for c in (0.2, 0.5)
    },
    "EASGD": {c: averaged(16, 1 - c, RANKS * c) for c in (0.1, 0.225)},
    "plain averaging": {1.0: averaged(16, 0.0, 1.0)},
    "sum of changes (DOWNPOUR)": {1.0: averaged(16, 0.0, float(RANKS))},
    "DiLoCo": {1.0: averaged(16, 0.0, 0.7, 0.9)},
    "a mean of gradients at every step": {1.0: DataParallelConfig()},
}


@dataclass(frozen=True)
class Pictures:
    """Pixels about 0, and labels."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, folder: Path, split: str) -> "Pictures":
        shards = Shards(folder, split)
        rows = shards.rows(np.arange(len(shards)))
        x = torch.from_numpy(rows["images"]).float().flatten(1) * float(shards.attributes["scale"])
        return cls(2 * x - 0.6, torch.from_numpy(rows["labels"]).long())

    def part(self, rows: slice) -> "Pictures":
        return Pictures(self.x[rows], self.y[rows])

    def batches(self, rank: int, seed: int) -> Iterator[TensorBatch]:
        """This rank's parts of all steps' batches."""
        generator = torch.Generator().manual_seed(seed)
        mine = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)
        for _ in range(STEPS):
            rows = torch.randint(len(self.y), (BATCH,), generator=generator)[mine]
            yield TensorBatch({"x": self.x[rows], "y": self.y[rows]}, rows, BATCH)

    @torch.no_grad()
    def score(self, model: nn.Module) -> tuple[float, float]:
        """Cross-entropy and accuracy."""
        logits = model(self.x)
        return float(F.cross_entropy(logits, self.y)), float((logits.argmax(1) == self.y).float().mean())


def loss(model: nn.Module, batch: TensorBatch) -> Tensor:
    return F.cross_entropy(model(batch.tensors["x"]), batch.tensors["y"])


def network(features: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def trained(config: SolverConfig, lr: float, seed: int, training: Pictures, judged: Pictures) -> tuple[float, float]:
    """Cross-entropy and accuracy after all steps of what the solver states: a leader's or the common parameters."""
    shared = {"optimizer": SgdConfig(lr=lr, momentum=0.9), "schedule": CosineConfig(warmup=0.05)}
    config = config.model_copy(update=shared)
    networks = [network(training.x.shape[1], seed) for _ in range(RANKS)]

    def program(transport: Transport) -> tuple[float, float]:
        model, world = networks[transport.rank], World(transport)
        context = Context(world=world, exchange=RingConfig(overlap=False), steps=STEPS, run_seed=seed)
        solver = config.build(Task(model, loss), context)
        for batch in training.batches(world.rank, seed):
            solver.step(batch)
        solver.gather()
        return judged.score(model)

    return run_ranks(RANKS, program)[0]


def step_bytes(config: SolverConfig, features: int) -> float:
    """Over all links, a step's mean."""
    values = 4 * sum(p.numel() for p in network(features, 0).parameters())

    def announced(size: int) -> int:
        return (size - 1) * (values + 8 * size)

    if isinstance(config, LeaderConfig):
        if config.group is None:
            return announced(RANKS) / config.every
        return RANKS // config.group * announced(config.group) / config.every + announced(RANKS) / config.global_period
    return 2 * (RANKS - 1) * values / (config.every if isinstance(config, LocalConfig) else 1)


def compare(folder: Path) -> None:
    """Print a row a method."""
    training, test = Pictures.of(folder, "train"), Pictures.of(folder, "test")
    count, features = training.x.shape
    rest, held_out = training.part(slice(count // 6, None)), training.part(slice(count // 6))
    print("| method | KB a step, all links | test loss | test accuracy | rate | pull |\n|---|---|---|---|---|---|")
    for name, configs in METHODS.items():
        tuned = {
            (lr, pull): trained(configs[pull], lr, TUNING, rest, held_out)[0] for lr, pull in product(RATES, configs)
        }
        lr, pull = min(tuned, key=lambda setting: tuned[setting] if np.isfinite(tuned[setting]) else np.inf)
        scores = [trained(configs[pull], lr, seed, training, test) for seed in SEEDS]
        told = [
            f"{statistics.mean(column):.3f} +- {statistics.stdev(column):.3f}" for column in zip(*scores, strict=True)
        ]
        kilobytes = f"{step_bytes(configs[pull], features) / 1e3:.1f}"
        strength = f"{pull:g}" if len(configs) > 1 else ""
        print(f"| {name} | {kilobytes} | {' | '.join(told)} | {lr:g} | {strength} |", flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("data/digits"))
    torch.set_num_threads(1)
    compare(p.parse_args().data)


if __name__ == "__main__":
    main()
