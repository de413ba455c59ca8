"""Optimizers, tuned alike: five learning rates each, chosen on held-out seeds, then five other seeds.

    python benchmarks/optimizers.py digits       AdaHessian, Muon, SOAP, Adam, SGD: training loss after 5 epochs
    python benchmarks/optimizers.py separable    M-SVAG, momentum, Adam, signs: accuracy where Adam generalises badly
    python benchmarks/optimizers.py logistic     ARSG, RSG, Adam: training loss after 8 epochs
    python benchmarks/optimizers.py fashion      ARSG, Adam: test loss of a small network after 8 epochs
    python benchmarks/optimizers.py cost         CPU seconds of a step, over SGD's and over Adam's
    python benchmarks/optimizers.py snvrg        SNVRG, SVRG, SCSG, SGD: noise of the estimate, and gradient norm

``logistic``, ``fashion`` and ``snvrg`` read data/fashion-mnist (``python -m hpcopt.prepare fashion-mnist``), or
``--data``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.exchange import RingConfig
from hpcopt.kept_memory import keep_memory
from hpcopt.optim import (
    AdaHessian,
    AdaHessianConfig,
    AdamWConfig,
    AnyTorchConfig,
    Arsg,
    ArsgConfig,
    MSvagConfig,
    OptimizerConfig,
    Rsg,
    SgdConfig,
    Signum,
    Svag,
)
from hpcopt.shapes import Context, Samples, Solver, Task, TensorBatch
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.snvrg import Snvrg, SnvrgConfig
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


def muon(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Of matrices; AdamW at a quarter of the rate, as in jobs/quickstart_muon.toml, of vectors."""
    others = AdamWConfig(lr=lr / 4, weight_decay=0.0)
    return AnyTorchConfig(type="torch.optim:Muon", lr=lr, arguments={"weight_decay": 0.0}, others=others).build(
        parameters
    )


def soap(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """pytorch-optimizer's."""
    return AnyTorchConfig(type="pytorch_optimizer:SOAP", lr=lr, arguments={"weight_decay": 0.0}).build(parameters)


TUNING, SEEDS = (100, 101), (0, 1, 2, 3, 4)


def step(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
    """One step, by what the optimizer asks for of the loss."""
    if isinstance(optimizer, AdaHessian):
        optimizer.backward(model, loss)
    else:
        optimizer.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def compare(
    trial: Trial,
    methods: dict[str, tuple[Make, list[float]]],
    defaults: dict[str, float],
    better: str,
    tuning: tuple[int, ...] = TUNING,
    seeds: tuple[int, ...] = SEEDS,
) -> None:
    """Tune each method, then print its scores over the seeds."""
    sign = 1 if better == "lower" else -1
    for name, (make, rates) in methods.items():
        tuned = {lr: statistics.mean(trial(make, lr, seed) for seed in tuning) for lr in rates}
        best = min(rates, key=lambda lr: sign * tuned[lr] if np.isfinite(tuned[lr]) else np.inf)
        edge = ", at the grid's edge" if best in (rates[0], rates[-1]) else ""
        told = " ".join(f"{lr:g}:{score:.3f}" for lr, score in tuned.items())
        for kind, lr in {"tuned": best, "default": defaults.get(name)}.items():
            if lr is not None:
                scores = [trial(make, lr, seed) for seed in seeds]
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
            step(optimizer, net, lambda net, rows=rows: F.cross_entropy(net(x[rows]), y[rows]))
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
    net = nn.Linear(x.shape[1], 1, bias=False)
    nn.init.zeros_(net.weight)
    optimizer = make(net.parameters(), lr)
    for t in range(4000):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - t / 4000)
        rows = torch.randperm(n, generator=generator)[:20]
        step(optimizer, net, lambda net, rows=rows: 0.5 * (net(x[rows])[:, 0] - y[rows]).square().mean())
    w = net.weight.detach()[0]
    with torch.no_grad():
        outcomes = [(label, float(w[0]) * label + float(w[1] + w[2])) for label in (1.0, -1.0)]
    return sum(share for (label, out), share in zip(outcomes, (0.7, 0.3), strict=True) if out * label > 0)


def logistic(folder: Path) -> Trial:
    """Training loss of logistic regression after 8 epochs of 234 steps, which are batches of 256 of Fashion-MNIST."""
    shards = Shards(folder, "train")
    rows = shards.rows(np.arange(len(shards)))
    x = torch.from_numpy(rows["images"]).float().flatten(1) * float(shards.attributes["scale"])
    y = torch.from_numpy(rows["labels"]).long()
    batch = max(8, len(y) // 234)

    def trial(make: Make, lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        net = nn.Linear(x.shape[1], 10)
        optimizer = make(net.parameters(), lr)
        for _ in range(8):
            for rows in torch.randperm(len(x)).split(batch):
                step(optimizer, net, lambda net, rows=rows: F.cross_entropy(net(x[rows]), y[rows]))
        return F.cross_entropy(net(x), y).item()

    return trial


def fashion(folder: Path) -> Trial:
    """Loss of a 784-64-10 network after 8 epochs of 50,000 pictures, batches of 256: of 10,000 held-out pictures with
    seeds for tuning, of the test set with others.
    """
    pictures, labels = {}, {}
    for split in ("train", "test"):
        shards = Shards(folder, split)
        rows = shards.rows(np.arange(len(shards)))
        pictures[split] = torch.from_numpy(rows["images"]).float().flatten(1) * float(shards.attributes["scale"])
        labels[split] = torch.from_numpy(rows["labels"]).long()
    held_out = 10_000
    x, y = pictures["train"][:-held_out], labels["train"][:-held_out]

    def trial(make: Make, lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], 64), nn.Tanh(), nn.Linear(64, 10))
        optimizer = make(net.parameters(), lr)
        for _ in range(8):
            for rows in torch.randperm(len(x)).split(256):
                step(optimizer, net, lambda net, rows=rows: F.cross_entropy(net(x[rows]), y[rows]))
        split, last = ("train", held_out) if seed in TUNING else ("test", len(labels["test"]))
        with torch.no_grad():
            out = net(pictures[split][-last:])
        right = (out.argmax(1) == labels[split][-last:]).double().mean().item()
        print(f"  lr {lr:g}, seed {seed}: {100 * right:.2f} % right", flush=True)
        return F.cross_entropy(out, labels[split][-last:]).item()

    return trial


# With the innermost batch at which a step costs 128 gradients of single samples, on the average.
Sum = tuple[SnvrgConfig, int]
NOISE: dict[str, Sum] = {
    "SGD": (SnvrgConfig(lengths=(1,)), 128),
    "SCSG, 32": (SnvrgConfig(lengths=(32,)), 44),
    "SCSG, 40": (SnvrgConfig(lengths=(40,)), 43),
    "SCSG, 48": (SnvrgConfig(lengths=(48,)), 43),
    "SCSG, 64": (SnvrgConfig(lengths=(64,)), 43),
    "SNVRG, 8 x 8": (SnvrgConfig(lengths=(8, 8)), 28),
}
NORMS: dict[str, Sum] = {  # of a sum of 4,000 samples
    "SGD": (SnvrgConfig(lengths=(1,)), 128),
    "SCSG, 8": (SnvrgConfig(lengths=(8,)), 46),
    "SCSG, 32": (SnvrgConfig(lengths=(32,)), 44),
    "SVRG, 64": (SnvrgConfig(lengths=(64,), reference="all"), 33),
    "SNVRG of all, 8 x 8": (SnvrgConfig(lengths=(8, 8), reference="all"), 18),
    "SNVRG of all, 12 x 10": (SnvrgConfig(lengths=(12, 10), reference="all"), 26),
}


class FiniteSum:
    """Mean of a function of ``y x.w`` over pictures in 40 principal components, and ``.001 sum w^2 / (1 + w^2)``."""

    def __init__(self, folder: Path, of: Callable[[Tensor], Tensor], most: int = 10**9, features: int = 40) -> None:
        shards = Shards(folder, "train")
        rows = shards.rows(np.arange(min(most, len(shards))))
        pixels = torch.from_numpy(rows["images"]).double().flatten(1) / 255
        pixels -= pixels.mean(0)
        self.x = pixels @ torch.linalg.eigh(pixels.T @ pixels)[1][:, -features:]
        self.x /= self.x.std(0).max()
        self.y = torch.from_numpy(np.where(rows["labels"] < 5, 1.0, -1.0))
        self._of = of

    def loss(self, model: nn.Module, batch: TensorBatch) -> Tensor:
        w = next(model.parameters())
        margins = batch.tensors["y"] * model(batch.tensors["x"])[:, 0]
        return self._of(margins).mean() + 1e-3 * (w.square() / (1 + w.square())).sum()

    def at(self, numbers: np.ndarray, whole: int) -> TensorBatch:
        rows = torch.from_numpy(numbers)
        return TensorBatch({"x": self.x[rows], "y": self.y[rows]}, rows, whole)

    def model(self) -> nn.Module:
        model = nn.Linear(self.x.shape[1], 1, bias=False).double()
        nn.init.zeros_(model.weight)
        return model

    def solver(self, method: Sum, lr: float, seed: int) -> Snvrg:
        config, batch = method
        config = config.model_copy(update={"optimizer": SgdConfig(lr=lr, momentum=0.0)})
        task = Task(self.model(), self.loss, Samples(len(self.y), batch, self.at))
        return config.build(task, Context(exchange=RingConfig(overlap=False), steps=10**6, run_seed=seed))

    def gradient(self, model: nn.Module) -> Tensor:
        everything = self.at(np.arange(len(self.y)), len(self.y))
        return torch.autograd.grad(self.loss(model, everything), list(model.parameters()))[0]


def noise(problem: FiniteSum, lr: float, draws: int, steps: int = 576) -> None:
    """Mean of ``|v - grad F|^2`` along one path of SGD, and its standard error over the draws."""
    print(f"along the path of SGD at {lr:g}:")
    s, path, wholes = problem.solver(NOISE["SGD"], lr, 7), [], []
    for _ in range(steps):
        path.append(next(s.model.parameters()).detach().clone())
        wholes.append(problem.gradient(s.model))
        s.step(None)
    for name, method in NOISE.items():
        means, cost = [], 0.0
        for seed in range(draws):
            s = problem.solver(method, 1e-12, seed)
            weight, gaps = next(s.model.parameters()), []
            for w, whole in zip(path, wholes, strict=True):
                with torch.no_grad():
                    weight.copy_(w)
                cost = float(s.step(None).scalars["gradients"])
                assert weight.grad is not None
                gaps.append(float((weight.grad - whole).square().sum()))
            means.append(statistics.mean(gaps))
        mean, error = statistics.mean(means), statistics.stdev(means) / draws**0.5
        print(f"{name:16} noise {mean:.3e} +- {error:.1e}, {cost / steps:.0f} gradients a step", flush=True)


def gradient_norms(problem: FiniteSum, passes: int = 10) -> None:
    """``|grad F|`` after so many passes' worth of gradients; each method tuned alike."""
    rates = [0.3, 1.0, 3.0, 10.0, 20.0]

    def trial(method: Sum, lr: float, seed: int) -> float:
        s, spent = problem.solver(method, lr, seed), 0.0
        while spent < passes * len(problem.y):
            spent = float(s.step(None).scalars["gradients"])
        return float(problem.gradient(s.model).norm())

    for name, method in NORMS.items():
        tuned = {lr: statistics.mean(trial(method, lr, seed) for seed in TUNING) for lr in rates}
        best = min(tuned, key=lambda lr: tuned[lr])
        norms = [trial(method, best, seed) for seed in SEEDS]
        told = " ".join(f"{lr:g}:{norm:.1e}" for lr, norm in tuned.items())
        mean, spread = statistics.mean(norms), statistics.stdev(norms)
        print(f"{name:22} |grad F| {mean:.2e} +- {spread:.1e} at lr {best:g}   {told}", flush=True)


def tell_costs(seconds: dict[str, list[float]]) -> None:
    """Medians, their quartiles, and medians of the ratios of a round."""
    for name, own in seconds.items():
        low, median, high = (1e3 * s for s in statistics.quantiles(own, n=4))
        over = {
            peer: statistics.median(a / b for a, b in zip(own, seconds[peer], strict=True)) for peer in ("SGD", "Adam")
        }
        told = "  ".join(f"{ratio:.2f} x {peer}" for peer, ratio in over.items())
        print(f"{name:22} {median:7.2f} ms ({low:.1f} to {high:.1f})  {told}", flush=True)


def network() -> nn.Module:
    """Of .9 million parameters."""
    return nn.Sequential(nn.Linear(784, 640), nn.Tanh(), nn.Linear(640, 640), nn.Tanh(), nn.Linear(640, 10))


def cost(rounds: int = 60, samples: int = 256) -> None:
    """CPU seconds of a step of a network of .9 million parameters, in a job's solver on one rank: medians, in turns."""
    keep_memory()  # as a job does
    configs: dict[str, OptimizerConfig] = {
        "SGD": SgdConfig(lr=1e-4, momentum=0.9),
        "Adam": AnyTorchConfig(type="torch.optim:Adam", lr=1e-4, arguments={"foreach": True}),
        "M-SVAG": MSvagConfig(lr=1e-4),
        "ARSG": ArsgConfig(lr=1e-4),
        "AdaHessian": AdaHessianConfig(lr=1e-4),
        "AdaHessian, every 10": AdaHessianConfig(lr=1e-4, every=10),
        "AdaHessian, parts 2": AdaHessianConfig(lr=1e-4, parts=2),
        "AdaHessian, parts 4": AdaHessianConfig(lr=1e-4, parts=4),
    }
    batch = TensorBatch(
        {"x": torch.randn(samples, 784), "y": torch.randint(10, (samples,))}, torch.arange(samples), samples
    )
    solvers: dict[str, Solver] = {}
    for name, config in configs.items():
        task = Task(network(), lambda net, b: F.cross_entropy(net(b.tensors["x"]), b.tensors["y"]))
        context = Context(exchange=RingConfig(overlap=False), steps=10**6)
        solvers[name] = DataParallelConfig(optimizer=config).build(task, context)
    steps = {name: partial(solver.step, batch) for name, solver in solvers.items()}
    tell_costs(in_turns(steps, rounds))
    print("the update alone:")
    tell_costs(in_turns({name: solver.optimizers[0].step for name, solver in solvers.items()}, 2 * rounds))


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each call in each round, but for the first two rounds. A round has ten of "every 10"."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            times = 10 if name.endswith("every 10") else 1
            start = time.process_time()
            for _ in range(times):
                call()
            if turn > 1:
                seconds[name].append((time.process_time() - start) / times)
    return seconds


# Of each experiment: the optimizers, and the rates that each is tuned over.
METHODS: dict[str, dict[str, tuple[Make, list[float]]]] = {
    "digits": {
        "AdaHessian": (ADAHESSIAN, [0.03, 0.1, 0.15, 0.3, 0.5]),
        "Muon": (muon, [0.003, 0.01, 0.03, 0.1, 0.3]),
        "SOAP": (soap, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        "Adam": (ADAM, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        "SGD": (SGD, [0.03, 0.1, 0.3, 0.5, 1.0]),
    },
    "separable": {
        "SGD": (SGD, [0.003, 0.01, 0.03, 0.1, 0.3]),
        "M-SVAG": (M_SVAG, [0.03, 0.1, 0.3, 1.0, 3.0]),
        "Adam": (ADAM, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        "M-SSD": (SIGNS, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
    },
    "logistic": {
        "ARSG": (ARSG, [0.005, 0.01, 0.02, 0.05, 0.1]),
        "RSG": (RSG, [0.3, 1.0, 3.0, 10.0, 30.0]),
        "Adam": (ADAM, [5e-3, 1e-2, 2e-2, 5e-2, 1e-1]),
    },
    "fashion": {
        "ARSG": (ARSG, [0.005, 0.01, 0.02, 0.05, 0.1]),
        "Adam": (ADAM, [1e-3, 2e-3, 5e-3, 1e-2, 2e-2]),
    },
}
DEFAULTS = {"AdaHessian": 0.15, "Adam": 1e-3}  # measured too, on digits


def trial_of(experiment: str, folder: Path) -> tuple[Trial, dict[str, float], str]:
    """What an experiment tries, default rates that it tries beside the best, and whether a lower score is better."""
    if experiment == "digits":
        return digits, DEFAULTS, "lower"
    if experiment == "separable":
        return separable, {}, "higher"
    return {"logistic": logistic, "fashion": fashion}[experiment](folder), {}, "lower"


def main() -> None:
    """Run one experiment."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("experiment", choices=["digits", "separable", "logistic", "fashion", "cost", "snvrg"])
    p.add_argument("--draws", type=int, default=10, help="of snvrg's noise")
    p.add_argument(
        "--only", nargs="+", metavar="NAME", help="of the optimizers of digits, separable, logistic, fashion"
    )
    p.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    arguments = p.parse_args()
    torch.set_num_threads(1)
    if arguments.experiment in METHODS:
        methods = METHODS[arguments.experiment]
        only = {name: methods[name] for name in arguments.only or methods}
        trial, defaults, better = trial_of(arguments.experiment, arguments.data)
        compare(trial, only, defaults, better)
    elif arguments.experiment == "snvrg":
        noise(FiniteSum(arguments.data, lambda margins: 1 - margins.tanh()), 0.02, arguments.draws)
        gradient_norms(FiniteSum(arguments.data, lambda margins: F.softplus(-margins), 4000))
    else:
        cost()


if __name__ == "__main__":
    main()
