"""Does K-FAC reach a loss sooner than tuned first-order optimizers? One rank, one thread.

    python benchmarks/kaisa/convergence.py sweep TASK OPTIMIZER               # every setting of the grid, short
    python benchmarks/kaisa/convergence.py run TASK OPTIMIZER SEED --steps 1000 [--set lr=0.1 damping=3] [--quiet]
    python benchmarks/kaisa/convergence.py report                             # tables and curves into docs/kaisa.md

Tasks: ``autoencoder`` (784-1000-500-250-30 and back, tanh, Bernoulli cross-entropy, batch 512) and ``resnet`` (ResNet-8
with GroupNorm, cross-entropy, batch 128), both on Fashion-MNIST less 2,500 held-out training images. Over a run's steps
the learning rate falls linearly to 2 %. What a run finds depends on its seed alone; what it takes is counted in CPU
seconds of the process and in wall seconds, which are meant only where the machine had nothing else to do (--quiet).
Settings are chosen by, and curves show, the loss of the held-out images; the end of a run is judged on the test set. A
run is a line of runs.jsonl. Evaluation is off the clock.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hpcopt
from hpcopt.comm.world import alone
from hpcopt.models.resnet import ResNetConfig

DATA = Path("data/fashion-mnist")
RUNS = Path(__file__).with_name("runs.jsonl")
HELD_OUT = 2500
EVALUATIONS = {"sweep": 5, "run": 25}

Settings = dict[str, Any]

KAISA: dict[str, Settings] = {
    "autoencoder": {
        "lr": 0.4, "momentum": 0.9, "damping": 3.0, "kl_clip": 1.0, "method": "low_rank", "rank": 32,
        "factor_every": 10, "inverse_every": 10,
    },
    "resnet": {
        "lr": 0.1, "momentum": 0.9, "damping": 0.03, "kl_clip": 0.01, "batch_every": 4, "factor_every": 10,
        "inverse_every": 20, "weight_decay": 5e-4,
    },
}  # fmt: skip

RESNET_SGD = [(0.9, 5e-4), (0.95, 5e-4), (0.9, 5e-3)]
RESNET_ADAMW = [(0.999, 0.01), (0.99, 0.01), (0.999, 0.1)]

GRIDS: dict[tuple[str, str], list[Settings]] = {
    ("autoencoder", "adamw"): [
        *({"lr": lr, "beta2": 0.999} for lr in (0.002, 0.0005, 0.001)),
        {"lr": 0.001, "beta2": 0.99},
    ],
    ("autoencoder", "sgd"): [{"lr": lr, "momentum": 0.9} for lr in (0.006, 0.012, 0.003, 0.0015, 0.0045)],
    ("autoencoder", "kaisa"): [{"lr": lr} for lr in (0.2, 0.4, 0.8, 1.6, 3.2)],
    ("resnet", "adamw"): [
        {"lr": lr, "beta2": beta2, "weight_decay": decay}
        for beta2, decay in RESNET_ADAMW
        for lr in (0.004, 0.002, 0.008, 0.001, 0.016)
    ],
    ("resnet", "sgd"): [
        {"lr": lr, "momentum": momentum, "weight_decay": decay}
        for momentum, decay in RESNET_SGD
        for lr in (0.05, 0.025, 0.1, 0.0125, 0.2)
    ],
    ("resnet", "kaisa"): [
        {"lr": 0.1},
        {"lr": 0.1, "damping": 0.01},
        {"lr": 0.2},
        {"lr": 0.2, "kl_clip": 0.003},
        {"lr": 0.2, "kl_clip": 0.1},
        {"lr": 0.2, "damping": 0.01, "kl_clip": 0.003},
        {"lr": 0.2, "damping": 0.1, "kl_clip": 0.03},
        {"lr": 0.2, "damping": 0.3, "kl_clip": 0.1, "batch_every": 8, "factor_every": 5, "inverse_every": 10},
        {"lr": 0.4, "kl_clip": 0.03},
        {"lr": 0.4, "damping": 0.1, "kl_clip": 0.003},
        {"lr": 0.4, "damping": 0.1, "kl_clip": 0.1},
        {"lr": 0.4, "damping": 1.0, "kl_clip": 0.1},
        {"lr": 0.2, "factor_decay": 0.7},
        {"lr": 0.2, "factor_decay": 0.7, "weight_decay": 0},
        {"lr": 0.2, "factor_decay": 0.8, "factor_every": 5, "inverse_every": 5},
    ],
}
SWEEP_STEPS = 200


def images(split: str) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1], shape (n, 784), and labels."""
    parts = [h5py.File(path) for path in sorted(DATA.glob(f"{split}-*.h5"))]
    pixels = torch.cat([torch.from_numpy(p["images"][...]) for p in parts])
    labels = torch.cat([torch.from_numpy(p["labels"][...]) for p in parts])
    return pixels.flatten(1).float() / 255, labels.long()


def autoencoder() -> nn.Sequential:
    widths = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(widths)):
        linear = nn.Linear(n, m)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear] if i in (3, 7) else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


class Task:
    """Data, model and loss."""

    def __init__(self, name: str) -> None:
        self.name = name
        images_, labels = images("train")
        self.train = images_[:-HELD_OUT], labels[:-HELD_OUT]
        self.held_out = images_[-HELD_OUT:], labels[-HELD_OUT:]
        self.test = images("test")
        self.batch = 512 if name == "autoencoder" else 128

    def model(self) -> nn.Module:
        return autoencoder() if self.name == "autoencoder" else ResNetConfig(blocks=1, width=16).build((1, 28, 28), 10)

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        outputs: Tensor = model(x if self.name == "autoencoder" else x.view(-1, 1, 28, 28) - 0.286)
        return outputs

    def loss(self, outputs: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        if self.name == "autoencoder":
            return F.binary_cross_entropy_with_logits(outputs, x, reduction="sum") / len(x)
        return F.cross_entropy(outputs, labels)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, samples: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Loss, and accuracy where there is one."""
        x, labels = samples
        model.eval()
        outputs = torch.cat([self.outputs(model, part) for part in x.split(500)])
        model.train()
        result = {"loss": self.loss(outputs, x, labels).item()}
        if self.name == "resnet":
            result["accuracy"] = (outputs.argmax(1) == labels).float().mean().item()
        return result


def optimizer_of(name: str, model: nn.Module, s: Settings) -> torch.optim.Optimizer:
    decay = s.get("weight_decay", 0.0)
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), s["lr"], (0.9, s["beta2"]), weight_decay=decay)
    return torch.optim.SGD(model.parameters(), s["lr"], s["momentum"], weight_decay=decay, nesterov=name == "sgd")


def run(
    task: Task, name: str, seed: int, steps: int, settings: Settings, evaluations: int, quiet: bool = False
) -> dict[str, Any]:
    """One run: its line of runs.jsonl."""
    torch.manual_seed(seed)
    model, generator = task.model(), torch.Generator().manual_seed(seed)
    settings = {**(KAISA[task.name] if name == "kaisa" else {}), **settings}
    optimizer = optimizer_of(name, model, settings)
    kaisa = None
    if name == "kaisa":
        own = {k: v for k, v in settings.items() if k not in ("lr", "momentum", "weight_decay")}
        kaisa = hpcopt.Kaisa(model, alone(), lr=lambda: optimizer.param_groups[0]["lr"], fisher="sampled", **own)
    x_all, labels_all = task.train
    curve, cpu_s, wall_s = [], 0.0, 0.0
    for step in range(steps):
        if step % max(1, steps // evaluations) == 0:
            point = {"step": step, "cpu_s": cpu_s, "wall_s": wall_s}
            curve.append({**point, **task.evaluate(model, task.held_out)})
        cpu, wall = time.process_time(), time.perf_counter()
        rows = torch.randint(0, len(x_all), (task.batch,), generator=generator)
        x, labels = x_all[rows], labels_all[rows]
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * max(0.02, 1 - step / steps)
        outputs = task.outputs(model, x)
        optimizer.zero_grad()
        if kaisa is not None and kaisa.factors_due:
            kaisa.sample(outputs, "bernoulli" if task.name == "autoencoder" else "categorical", generator=generator)
        task.loss(outputs, x, labels).backward()  # type: ignore[no-untyped-call]
        if kaisa is not None:
            kaisa.step()
        optimizer.step()
        cpu_s, wall_s = cpu_s + time.process_time() - cpu, wall_s + time.perf_counter() - wall
    curve.append({"step": steps, "cpu_s": cpu_s, "wall_s": wall_s, **task.evaluate(model, task.held_out)})
    return {
        "task": task.name, "optimizer": name, "seed": seed, "steps": steps, "settings": settings, "quiet": quiet,
        "test": task.evaluate(model, task.test), "curve": curve,
    }  # fmt: skip


def record(result: dict[str, Any]) -> None:
    with RUNS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    last = {k: round(v, 4) for k, v in result["curve"][-1].items()}
    print(*(result[k] for k in ("task", "optimizer", "seed", "settings", "test")), last, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep, one = commands.add_parser("sweep"), commands.add_parser("run")
    for command in (sweep, one):
        command.add_argument("task", choices=["autoencoder", "resnet"])
        command.add_argument("optimizer", choices=["sgd", "adamw", "kaisa"])
    sweep.add_argument("--only", type=int, help="one setting, by its place in the grid")
    one.add_argument("seed", type=int)
    one.add_argument("--steps", type=int, required=True)
    one.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    one.add_argument("--quiet", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(a.task)
    if a.command == "run":
        settings = {k: json.loads(v) for k, v in (pair.split("=") for pair in a.set)}
        record(run(task, a.optimizer, a.seed, a.steps, settings, EVALUATIONS["run"], a.quiet))
    else:
        grid = GRIDS[a.task, a.optimizer]
        for settings in grid if a.only is None else [grid[a.only]]:
            record(run(task, a.optimizer, 0, SWEEP_STEPS, settings, EVALUATIONS["sweep"]))


if __name__ == "__main__":
    main()
