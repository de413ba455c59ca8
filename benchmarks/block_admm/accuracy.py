"""Fashion-MNIST, 60,000 images, 784-256-256-10 ReLU, 6 epochs of batches of 128: Block-ADMM beside back-propagation and
beside other solvers that split the network.

    python -m benchmarks.block_admm.accuracy --tune --methods adam batch --seeds 0       settings, on held-out images
    python -m benchmarks.block_admm.accuracy --methods adam batch --seeds 0 1 2          the best one: run and record
    python -m benchmarks.block_admm.accuracy                                             the table of what is recorded
"""

import itertools
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from benchmarks.block_admm.bench import Settings, chosen, fashion_mnist, options, recorded, run_all, spread, train
from hpcopt.optim import CosineConfig, OptimizerConfig, SgdConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.splitting.altmin import AltMinConfig
from hpcopt.solvers.splitting.bcd import BcdConfig
from hpcopt.solvers.splitting.dladmm import DlAdmmConfig

EPOCHS = 6
COSINE = CosineConfig()


def adam(lr: float, decay: float = 0) -> AdamWConfig:
    return AdamWConfig(lr=lr, weight_decay=decay)


def back_propagation(optimizers: Iterable[OptimizerConfig]) -> Settings:
    return {
        f"lr {o.lr:g}, decay {o.weight_decay:g}": DataParallelConfig(optimizer=o, schedule=COSINE) for o in optimizers
    }


def block_admm(rhos: Sequence[float], **kind: Any) -> Settings:
    return {
        f"rho {rho}, lr {lr:g}, decay {decay:g}": BlockAdmmConfig(
            rho=rho, optimizer=adam(lr, decay), schedule=COSINE, **kind
        )
        for rho, lr, decay in product(rhos, (1e-3, 2e-3), (0, 0.1))
    }


def keeping(auxiliaries: str) -> Settings:
    """The textbook forms want a smaller penalty, or more steps on z to leave behind where an epoch ago put it."""
    return {
        f"rho {rho}, {k} z steps": BlockAdmmConfig(auxiliaries=auxiliaries, rho=rho, z_steps=k, schedule=COSINE)
        for rho, k in product((0.1, 1, 10, 100), (3, 10))
    }


METHODS: dict[str, Settings] = {
    "adam": back_propagation(adam(lr, decay) for lr, decay in product((5e-4, 1e-3, 2e-3, 4e-3), (0, 0.1))),
    "sgd": back_propagation(
        SgdConfig(lr=lr, weight_decay=decay) for lr, decay in product((0.02, 0.05, 0.1, 0.2), (0, 5e-4))
    ),
    "batch": block_admm((10, 100)),
    "online": block_admm((100, 1000), form="online"),
    "stored": keeping("stored"),
    "revisited": keeping("revisited"),
    "altmin": {
        f"lr {lr:g}, mu {mu:g}": AltMinConfig(optimizer=adam(lr), mu=mu, schedule=COSINE)
        for lr, mu in product((1e-3, 2e-3, 4e-3, 8e-3), (3e-3, 3e-2))
    },
    "bcd": {"as published": BcdConfig()},
    "dladmm": {
        f"rho {rho:g}, theta {theta:g}": DlAdmmConfig(rho=rho, theta=theta)
        for rho, theta in product((1e-6, 1e-5, 1e-4, 1e-3), (1e-2, 1))
    },
}
WHOLE = {"bcd": 50, "dladmm": 20}  # these see all samples in every step; their steps
WHOLE_TUNED_ON = 5000, 20  # samples and steps of them that choose their settings

LABELS = {
    "adam": "back-propagation, Adam",
    "sgd": "back-propagation, SGD with momentum",
    "batch": "Block-ADMM, batch form",
    "online": "Block-ADMM, online form",
    "stored": "Block-ADMM, stored auxiliaries",
    "revisited": "Block-ADMM, auxiliaries stored from the first visit on",
    "altmin": "online alternating minimisation",
    "bcd": "block coordinate descent",
    "dladmm": "dlADMM",
}


def network(seed: int, hidden: tuple[int, ...] = (256, 256)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([784, *hidden, 10]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    choice = options(__doc__ or "", list(METHODS))
    if not choice.methods:
        table()
        return
    part, steps = WHOLE_TUNED_ON

    def run(method: str, config: Any, seed: int) -> dict[str, Any]:
        whole, epochs, batch = method in WHOLE, EPOCHS, 200 if method == "altmin" else 128
        data = fashion_mnist(part if whole and choice.tune else 60000, tune=choice.tune)
        if whole:
            epochs, batch = steps if choice.tune else WHOLE[method], len(data[0].y)
        return train(config, network(seed), *data, batch=batch, epochs=epochs, seed=seed) | {"epochs": epochs}

    run_all("accuracy", METHODS, choice, run)


def table() -> None:
    results = recorded("accuracy")
    sgd = [run for run in results["sgd"] if run["setting"] == chosen("accuracy", "sgd", METHODS["sgd"])]
    sgd_accuracy, sgd_s = (sum(column) / len(sgd) for column in zip(*map(end_and_cost, sgd), strict=True))
    print("| solver | setting (of so many) | seeds | passes | accuracy, mean (range) | points over SGD | CPU time |")
    print("|---|---|---|---|---|---|---|")
    for method, settings in METHODS.items():
        if method in results:
            label = chosen("accuracy", method, settings)
            runs = [run for run in results[method] if run["setting"] == label]
            final, seconds = zip(*map(end_and_cost, runs), strict=True)
            points, times = 100 * (sum(final) / len(final) - sgd_accuracy), sum(seconds) / len(seconds) / sgd_s
            print(
                f"| {LABELS[method]} | {label} ({len(settings)}) | {len(runs)} | {runs[0]['epochs']} | {spread(final)} "
                f"| {points:+.2f} | {times:.1f} |"
            )


def end_and_cost(run: dict[str, Any]) -> tuple[float, float]:
    """Accuracy at the end, and CPU seconds in the solver's steps."""
    return run["accuracy"][-1], run["cpu_s"]


if __name__ == "__main__":
    main()
