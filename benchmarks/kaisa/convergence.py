"""Does K-FAC reach a loss sooner than tuned first-order optimizers? One rank, one thread.

    python -m benchmarks.kaisa.convergence sweep TASK OPTIMIZER               # every setting of the grid, short
    python -m benchmarks.kaisa.convergence run TASK OPTIMIZER SEED --steps 1000 [--set lr=0.1 damping=3]
    python -m benchmarks.kaisa.convergence clock                              # what a step takes
    python benchmarks/kaisa/curves.py                                  # tables and curves into docs/results/kaisa.md

Tasks: ``autoencoder`` (784-1000-500-250-30 and back, tanh, Bernoulli cross-entropy, batch 512) and ``resnet`` (ResNet-8
with GroupNorm, cross-entropy, batch 128), both on Fashion-MNIST less 2,500 held-out training images. Over a run's steps
the learning rate falls linearly to 2 %. Settings are chosen by, and curves show, the loss of the held-out images; the
end of a run is judged on the test set. A run is a line of runs.jsonl; it depends on its seed alone but for the seconds,
which other work on the machine lengthens. So ``clock`` measures what a step takes, the chosen settings of all
optimizers taking turns, into step_times.json: CPU seconds of the process, of one thread, which with nothing else on the
machine are its wall seconds. Evaluation is off the clock. kfac-pytorch, which has KAISA's own code, is not to be had as
a package: its folder is to be on the path.
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
from benchmarks.kaisa.curves import chosen
from hpcopt.comm.world import alone
from hpcopt.models.resnet import ResNetConfig
from hpcopt.optim.several import Several
from hpcopt.solvers.kaisa.targets import Distribution

DATA = Path("data/fashion-mnist")
RUNS = Path(__file__).with_name("runs.jsonl")
STEP_TIMES = Path(__file__).with_name("step_times.json")
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


def optimizer_of(name: str, model: nn.Module, s: Settings, kaisa: hpcopt.Kaisa | None) -> torch.optim.Optimizer:
    decay = s.get("weight_decay", 0.0)
    if name == "muon":
        assert kaisa is not None
        moved = {id(p) for p in kaisa.whole}
        rest = [p for p in model.parameters() if id(p) not in moved]
        steps = torch.optim.SGD(kaisa.whole, s["lr"], weight_decay=decay)
        return Several([steps, torch.optim.AdamW(rest, s["rest_lr"], weight_decay=0.0)])
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), s["lr"], (0.9, s["beta2"]), weight_decay=decay)
    return torch.optim.SGD(model.parameters(), s["lr"], s["momentum"], weight_decay=decay, nesterov=name == "sgd")


class Training:
    """A model with its optimizer and its own random numbers."""

    def __init__(self, task: Task, name: str, seed: int, settings: Settings) -> None:
        torch.manual_seed(seed)
        self.task, self.model = task, task.model()
        self.generator = torch.Generator().manual_seed(seed)
        self.settings = {**(KAISA[task.name] if name == "kaisa" else {}), **settings}
        self.kaisa, self.peer = None, None
        own = {k: v for k, v in self.settings.items() if k not in ("lr", "momentum", "weight_decay", "rest_lr")}
        lr = lambda *_: self.optimizer.param_groups[0]["lr"]  # noqa: E731
        if name == "kaisa":
            self.kaisa = hpcopt.Kaisa(self.model, alone(), lr=lr, fisher="sampled", seed=seed, **own)
        elif name == "muon":
            self.kaisa = hpcopt.Kaisa(self.model, alone(), method="muon", **own)
        self.optimizer = optimizer_of(name, self.model, self.settings, self.kaisa)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if name == "kfac-pytorch":
            from kfac.preconditioner import KFACPreconditioner

            self.peer = KFACPreconditioner(self.model, lr=lr, **own)

    def step(self, part: float) -> None:
        """One step with this part of the learning rate."""
        task, (x_all, labels_all) = self.task, self.task.train
        rows = torch.randint(0, len(x_all), (task.batch,), generator=self.generator)
        x, labels = x_all[rows], labels_all[rows]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * part
        outputs = task.outputs(self.model, x)
        self.optimizer.zero_grad()
        if self.kaisa is not None and self.kaisa.factors_due:
            distribution: Distribution = "bernoulli" if task.name == "autoencoder" else "categorical"
            self.kaisa.sample(outputs, distribution, generator=self.generator)
        task.loss(outputs, x, labels).backward()  # type: ignore[no-untyped-call]
        if self.kaisa is not None:
            self.kaisa.step()
        if self.peer is not None:
            self.peer.step()
        self.optimizer.step()


def run(task: Task, name: str, seed: int, steps: int, settings: Settings, evaluations: int) -> dict[str, Any]:
    """One run: its line of runs.jsonl."""
    training = Training(task, name, seed, settings)
    curve, cpu_s, wall_s = [], 0.0, 0.0
    for step in range(steps):
        if step % max(1, steps // evaluations) == 0:
            point = {"step": step, "cpu_s": cpu_s, "wall_s": wall_s}
            curve.append({**point, **task.evaluate(training.model, task.held_out)})
        cpu, wall = time.process_time(), time.perf_counter()
        training.step(max(0.02, 1 - step / steps))
        cpu_s, wall_s = cpu_s + time.process_time() - cpu, wall_s + time.perf_counter() - wall
    curve.append({"step": steps, "cpu_s": cpu_s, "wall_s": wall_s, **task.evaluate(training.model, task.held_out)})
    return {
        "task": task.name, "optimizer": name, "seed": seed, "steps": steps, "settings": training.settings,
        "test": task.evaluate(training.model, task.test), "curve": curve,
    }  # fmt: skip


def best_settings(task: str) -> dict[str, Settings]:
    """Of each optimizer, those that the report speaks of."""
    runs = [run for run in map(json.loads, RUNS.read_text().splitlines()) if run["task"] == task]
    return {name: best[0]["settings"] for name, best in chosen(runs).items()}


def clock(task: Task, settings: dict[str, Settings], rounds: int = 5, steps: int = 20) -> dict[str, list[float]]:
    """CPU seconds of a step, one number a round; the optimizers take turns of steps that hold whole numbers of K-FAC's
    refreshes of factors and of inverses.
    """
    trainings = {name: Training(task, name, 0, own) for name, own in settings.items()}
    took: dict[str, list[float]] = {name: [] for name in trainings}
    for turn in range(rounds + 1):
        for name, training in trainings.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(steps):
                training.step(0.1)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            print(f"{task.name} {name}: {wall / steps:.4f} s, of which it had a core for {cpu / wall:.1%}", flush=True)
            if turn > 0:
                took[name].append(cpu / steps)
    return took


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
        command.add_argument("optimizer", choices=["sgd", "adamw", "kaisa", "muon", "kfac-pytorch"])
    sweep.add_argument("--only", type=int, help="one setting, by its place in the grid")
    one.add_argument("seed", type=int)
    one.add_argument("--steps", type=int, required=True)
    one.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    commands.add_parser("clock")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.command == "clock":
        times = {name: clock(Task(name), best_settings(name)) for name in ("autoencoder", "resnet")}
        STEP_TIMES.write_text(json.dumps(times, indent=1) + "\n")
        return
    task = Task(a.task)
    if a.command == "run":
        settings = {k: json.loads(v) for k, v in (pair.split("=") for pair in a.set)}
        record(run(task, a.optimizer, a.seed, a.steps, settings, EVALUATIONS["run"]))
    else:
        grid = GRIDS[a.task, a.optimizer]
        for settings in grid if a.only is None else [grid[a.only]]:
            record(run(task, a.optimizer, 0, SWEEP_STEPS, settings, EVALUATIONS["sweep"]))


if __name__ == "__main__":
    main()
