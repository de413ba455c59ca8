"""Does K-FAC reach a given loss sooner than tuned first-order optimizers? One thread, one rank, CPU seconds.

    python benchmarks/kaisa/convergence.py run TASK OPTIMIZER SEED [--seconds 30] [--set lr=0.1 damping=3]
    python benchmarks/kaisa/convergence.py table

Tasks: ``autoencoder`` (784-1000-500-250-30 and back, tanh, Bernoulli cross-entropy, batch 512) and ``resnet``
(ResNet-8 with GroupNorm, cross-entropy, batch 128), both on Fashion-MNIST. Every run gets the same CPU seconds, over
which the learning rate falls linearly to 2 %; evaluation is off the clock. A run is a line of runs.jsonl; the table
takes, for each optimizer, the settings with the best final loss over the seeds that were run.
"""

import argparse
import json
import time
from collections import defaultdict
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
KAISA = {
    "autoencoder": {"lr": 0.2, "damping": 3.0, "kl_clip": 1.0, "factor_every": 10, "inverse_every": 50},
    "resnet": {"lr": 0.1, "damping": 0.03, "kl_clip": 0.01, "factor_every": 10, "inverse_every": 50},
}


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
        self.train, self.test = images("train"), images("test")
        self.batch = 512 if name == "autoencoder" else 128

    def model(self) -> nn.Module:
        return autoencoder() if self.name == "autoencoder" else ResNetConfig(blocks=1, width=16).build((1, 28, 28), 10)

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        return model(x if self.name == "autoencoder" else x.view(-1, 1, 28, 28) - 0.286)

    def loss(self, outputs: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        if self.name == "autoencoder":
            return F.binary_cross_entropy_with_logits(outputs, x, reduction="sum") / len(x)
        return F.cross_entropy(outputs, labels)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, first: int | None = None) -> dict[str, float]:
        """Test loss and accuracy, on the first so many samples."""
        model.eval()
        x, labels = (t[:first] for t in self.test)
        outputs = torch.cat([self.outputs(model, part) for part in x.split(1000)])
        model.train()
        result = {"loss": self.loss(outputs, x, labels).item()}
        if self.name == "resnet":
            result["accuracy"] = (outputs.argmax(1) == labels).float().mean().item()
        return result


def run(task: Task, optimizer_name: str, seed: int, seconds: float, settings: dict[str, float]) -> dict[str, Any]:
    torch.manual_seed(seed)
    model, generator = task.model(), torch.Generator().manual_seed(seed)
    kaisa = None
    if optimizer_name == "kaisa":
        settings = {**KAISA[task.name], **settings}
        rest = {k: int(v) if k.endswith("every") else v for k, v in settings.items() if k not in ("lr", "weight_decay")}
        kaisa = hpcopt.Kaisa(model, alone(), lr=lambda: optimizer.param_groups[0]["lr"], fisher="sampled", **rest)
    lr = settings["lr"]
    decay = settings.get("weight_decay", 0.0 if task.name == "autoencoder" else 5e-4)
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr, weight_decay=decay * 10)
        if optimizer_name == "adamw"
        else torch.optim.SGD(model.parameters(), lr, 0.9, nesterov=optimizer_name == "sgd", weight_decay=decay)
    )
    x_all, labels_all = task.train
    curve, used_s, step, next_s = [], 0.0, 0, 0.0
    while used_s < seconds:
        if used_s >= next_s:
            curve.append({"seconds": used_s, "step": step, **task.evaluate(model, 2000)})
            next_s += seconds / 20
        start = time.process_time()
        rows = torch.randint(0, len(x_all), (task.batch,), generator=generator)
        x, labels = x_all[rows], labels_all[rows]
        for group in optimizer.param_groups:
            group["lr"] = lr * max(0.02, 1 - used_s / seconds)
        outputs = task.outputs(model, x)
        optimizer.zero_grad()
        if kaisa is not None and kaisa.factors_due:
            kaisa.sample(outputs, "bernoulli" if task.name == "autoencoder" else "categorical", generator=generator)
        task.loss(outputs, x, labels).backward()
        if kaisa is not None:
            kaisa.step()
        optimizer.step()
        step += 1
        used_s += time.process_time() - start
    curve.append({"seconds": used_s, "step": step, **task.evaluate(model, 2000)})
    final = task.evaluate(model)
    return {
        "task": task.name, "optimizer": optimizer_name, "seed": seed, "seconds": seconds, "settings": settings,
        "steps": step, "final": final, "curve": curve,
    }  # fmt: skip


def crossing(curve: list[dict[str, float]], loss: float) -> tuple[float, float]:
    """CPU seconds and steps at which a curve first is at a loss, interpolated."""
    for a, b in pairwise(curve):
        if b["loss"] <= loss:
            part = (a["loss"] - loss) / (a["loss"] - b["loss"])
            return (a["seconds"] + part * (b["seconds"] - a["seconds"]), a["step"] + part * (b["step"] - a["step"]))
    return float("nan"), float("nan")


def mean_and_spread(values: list[float]) -> str:
    x = torch.tensor(values, dtype=torch.float64)
    return f"{x.mean():.4g} +- {x.std(correction=1) if len(x) > 1 else float('nan'):.2g}"


def table() -> None:
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()]
    for task in sorted({r["task"] for r in runs}):
        trials: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for r in runs:
            if r["task"] == task:
                trials[r["optimizer"]][json.dumps(r["settings"], sort_keys=True)].append(r)
        print(f"\n## {task}\n\nAll trials, final test loss (seeds):\n")
        best = {}
        for optimizer, by_setting in trials.items():
            ranked = sorted(by_setting.items(), key=lambda item: min(r["final"]["loss"] for r in item[1]))
            for setting, group in ranked:
                losses = [r["final"]["loss"] for r in group]
                print(f"- {optimizer} {setting}: {mean_and_spread(losses)} ({len(losses)})")
            best[optimizer] = max(ranked, key=lambda item: (len(item[1]), -min(r["final"]["loss"] for r in item[1])))[1]
        targets = {
            name: sum(r["curve"][-1]["loss"] for r in best[name]) / len(best[name])
            for name in ("sgd", "adamw")
            if name in best
        }
        print("\n| optimizer | seeds | steps | final test loss | accuracy |", end="")
        print("".join(f" s to {name}'s final | steps to it |" for name in targets))
        print("|---" * (5 + 2 * len(targets)) + "|")
        for optimizer, group in best.items():
            cells = [optimizer, str(len(group)), f"{sum(r['steps'] for r in group) / len(group):.0f}"]
            cells.append(mean_and_spread([r["final"]["loss"] for r in group]))
            cells.append(mean_and_spread([r["final"].get("accuracy", float("nan")) for r in group]))
            for loss in targets.values():
                crossings = [crossing(r["curve"], loss) for r in group]
                cells += [mean_and_spread([c[i] for c in crossings]) for i in (0, 1)]
            print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("task", choices=["autoencoder", "resnet"])
    one.add_argument("optimizer", choices=["sgd", "adamw", "kaisa"])
    one.add_argument("seed", type=int)
    one.add_argument("--seconds", type=float, default=30)
    one.add_argument("--set", nargs="*", default=[])
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
        return
    torch.set_num_threads(1)
    settings = {key: float(value) for key, value in (pair.split("=") for pair in arguments.set)}
    result = run(Task(arguments.task), arguments.optimizer, arguments.seed, arguments.seconds, settings)
    with RUNS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(arguments.task, arguments.optimizer, arguments.seed, result["settings"], result["steps"], result["final"])


if __name__ == "__main__":
    main()
