"""Optimizers, tuned alike: five learning rates each, chosen on held-out seeds, then five other seeds.

    python benchmarks/optimizers.py digits       AdaHessian, Adam, SGD: training loss of a small network after 5 epochs
    python benchmarks/optimizers.py separable    M-SVAG, momentum, Adam, signs: accuracy where Adam generalises badly
    python benchmarks/optimizers.py logistic     ARSG, RSG, Adam: training loss after 8 epochs of Fashion-MNIST
    python benchmarks/optimizers.py cost         CPU seconds of a step, over SGD's and over Adam's

``logistic`` reads data/fashion-mnist (``python -m hpcopt.prepare fashion-mnist``).
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.optim import AdaHessian, Arsg, Rsg, Signum, Svag
from hpcopt.store.shards import Shards

Make = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
Trial = Callable[[Make, float, int], float]  # of an optimizer, its learning rate and a seed: the score

ADAHESSIAN: Make = lambda p, lr: AdaHessian(p, lr=lr)  # noqa: E731
ADAM: Make = lambda p, lr: torch.optim.Adam(p, lr=lr)  # noqa: E731
SGD: Make = lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)  # noqa: E731
M_SVAG: Make = lambda p, lr: Svag(p, lr=lr)  # noqa: E731
ARSG: Make = lambda p, lr: Arsg(p, lr=lr)  # noqa: E731
RSG: Make = lambda p, lr: Rsg(p, lr=lr)  # noqa: E731
SIGNS: Make = lambda p, lr: Signum(p, lr=lr)  # noqa: E731

TUNING, SEEDS = (100, 101), (0, 1, 2, 3, 4)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step, with what the optimizer needs of the graph."""
    optimizer.zero_grad()
    loss.backward(create_graph=isinstance(optimizer, AdaHessian) and optimizer.due)
    optimizer.step()


def compare(
    trial: Trial, methods: dict[str, tuple[Make, list[float]]], defaults: dict[str, float], better: str
) -> None:
    """Tune each method, then print its scores over the seeds."""
    sign = 1 if better == "lower" else -1
    for name, (make, rates) in methods.items():
        tuned = {lr: statistics.mean(trial(make, lr, seed) for seed in TUNING) for lr in rates}
        best = min(rates, key=lambda lr: sign * tuned[lr] if np.isfinite(tuned[lr]) else np.inf)
        edge = ", at the grid's edge" if best in (rates[0], rates[-1]) else ""
        told = " ".join(f"{lr:g}:{score:.3f}" for lr, score in tuned.items())
        for kind, lr in {"tuned": best, "default": defaults.get(name)}.items():
            if lr is not None:
                scores = [trial(make, lr, seed) for seed in SEEDS]
                mean, spread = statistics.mean(scores), statistics.stdev(scores)
                print(f"{name:12} {kind:8} lr {lr:<6g} {mean:.4f} +- {spread:.4f}   {told}{edge}", flush=True)


def digits(make: Make, lr: float, seed: int) -> float:
    """Training loss of a 64-64-10 network after 5 epochs, batches of 64."""
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    y = torch.tensor(load_digits().target)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = make(net.parameters(), lr)
    for _ in range(5):
        for rows in torch.randperm(len(x)).split(64):
            step(optimizer, F.cross_entropy(net(x[rows]), y[rows]))
    return F.cross_entropy(net(x), y).item()


def separable(make: Make, lr: float, seed: int) -> float:
    """Test accuracy of least squares on the data of Wilson et al. (2017, arXiv:1705.08292), 4,000 steps."""
    n = 60
    generator = torch.Generator().manual_seed(seed)
    y = torch.where(torch.rand(n, generator=generator) < 0.7, 1.0, -1.0)
    x = torch.zeros(n, 3 + 5 * n)
    x[:, 0], x[:, 1:3] = y, 1.0
    for i in range(n):
        x[i, 3 + 5 * i : 3 + 5 * i + (1 if y[i] > 0 else 5)] = 1.0
    w = nn.Parameter(torch.zeros(x.shape[1]))
    optimizer = make([w], lr)
    for t in range(4000):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - t / 4000)
        rows = torch.randperm(n, generator=generator)[:20]
        step(optimizer, 0.5 * (x[rows] @ w - y[rows]).square().mean())
    with torch.no_grad():
        outcomes = [(label, float(w[0]) * label + float(w[1] + w[2])) for label in (1.0, -1.0)]
    return sum(share for (label, out), share in zip(outcomes, (0.7, 0.3), strict=True) if out * label > 0)


def logistic(folder: Path) -> Trial:
    """Training loss of logistic regression on Fashion-MNIST after 8 epochs, batches of 256."""
    shards = Shards(folder, "train")
    rows = shards.rows(np.arange(len(shards)))
    x = torch.from_numpy(rows["images"]).float().flatten(1) / 255
    y = torch.from_numpy(rows["labels"]).long()

    def trial(make: Make, lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        net = nn.Linear(x.shape[1], 10)
        optimizer = make(net.parameters(), lr)
        for _ in range(8):
            for rows in torch.randperm(len(x)).split(256):
                step(optimizer, F.cross_entropy(net(x[rows]), y[rows]))
        return F.cross_entropy(net(x), y).item()

    return trial


def cost(repeats: int = 7, steps: int = 10) -> None:
    """CPU seconds of a step of a network of .9 million parameters, medians, in turns."""
    methods: dict[str, Make] = {
        "SGD": SGD,
        "Adam": lambda p, lr: torch.optim.Adam(p, lr=lr, foreach=True),
        "M-SVAG": M_SVAG,
        "ARSG": ARSG,
        "AdaHessian": ADAHESSIAN,
        "AdaHessian, every 10": lambda p, lr: AdaHessian(p, lr=lr, every=10),
    }
    x, y = torch.randn(256, 784), torch.randint(10, (256,))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    nets: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}
    for name, make in methods.items():
        net = nn.Sequential(nn.Linear(784, 640), nn.Tanh(), nn.Linear(640, 640), nn.Tanh(), nn.Linear(640, 10))
        nets[name] = net, make(net.parameters(), 1e-4)
    for turn in range(repeats + 1):
        for name, (net, optimizer) in nets.items():
            start = time.process_time()
            for _ in range(steps):
                step(optimizer, F.cross_entropy(net(x), y))
            if turn:
                seconds[name].append((time.process_time() - start) / steps)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    for name, s in median.items():
        spread = f"{min(seconds[name]) * 1e3:.1f} to {max(seconds[name]) * 1e3:.1f}"
        print(f"{name:22} {s * 1e3:7.2f} ms ({spread})  {s / median['SGD']:.2f} x SGD  {s / median['Adam']:.2f} x Adam")
    print("the update alone:")
    for name, (net, optimizer) in nets.items():
        if isinstance(optimizer, AdaHessian):
            continue
        step(optimizer, F.cross_entropy(net(x), y))
        alone = []
        for _ in range(20 * repeats):
            start = time.process_time()
            optimizer.step()
            alone.append(time.process_time() - start)
        print(f"{name:22} {statistics.median(alone) * 1e3:7.3f} ms")


def main() -> None:
    """Run one experiment."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("experiment", choices=["digits", "separable", "logistic", "cost"])
    p.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    arguments = p.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Using backward")  # the optimizer lets go of the graph
    adam: tuple[Any, list[float]] = (ADAM, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1])
    if arguments.experiment == "digits":
        methods = {
            "AdaHessian": (ADAHESSIAN, [0.03, 0.1, 0.15, 0.3, 0.5]),
            "Adam": adam,
            "SGD": (SGD, [0.03, 0.1, 0.3, 0.5, 1.0]),
        }
        compare(digits, methods, {"AdaHessian": 0.15, "Adam": 1e-3}, "lower")
    elif arguments.experiment == "separable":
        methods = {
            "SGD": (SGD, [0.003, 0.01, 0.03, 0.1, 0.3]),
            "M-SVAG": (M_SVAG, [0.03, 0.1, 0.3, 1.0, 3.0]),
            "Adam": adam,
            "M-SSD": (SIGNS, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
        }
        compare(separable, methods, {}, "higher")
    elif arguments.experiment == "logistic":
        methods = {
            "ARSG": (ARSG, [0.005, 0.01, 0.02, 0.05, 0.1]),
            "RSG": (RSG, [0.3, 1.0, 3.0, 10.0, 30.0]),
            "Adam": (ADAM, [1e-3, 2e-3, 5e-3, 1e-2, 2e-2]),
        }
        compare(logistic(arguments.data), methods, {}, "lower")
    else:
        cost()


if __name__ == "__main__":
    main()
