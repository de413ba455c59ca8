"""Fashion-MNIST, 60,000 images, 784-256-256-10 ReLU, 6 epochs of batches of 128: Block-ADMM beside back-propagation and
beside other solvers that split the network.

    python -m benchmarks.block_admm.accuracy --tune --methods adam batch --seeds 0       settings, on held-out images
    python -m benchmarks.block_admm.accuracy --methods adam batch --seeds 0 1 2          the best one: run and record
    python -m benchmarks.block_admm.accuracy                                             the table of what is recorded
"""

import itertools
from typing import Any

import torch
from torch import nn

from benchmarks.block_admm.bench import chosen, fashion_mnist, options, recorded, run_all, spread, train
from hpcopt.optim import ScheduleConfig, SgdConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.splitting.altmin import AltMinConfig
from hpcopt.solvers.splitting.bcd import BcdConfig
from hpcopt.solvers.splitting.dladmm import DlAdmmConfig

EPOCHS = 6  # half as many to choose settings
COSINE = ScheduleConfig(name="cosine")


def adam(lr: float) -> AdamWConfig:
    return AdamWConfig(lr=lr, weight_decay=0)


RATES = (5e-4, 1e-3, 2e-3)
METHODS = {
    "adam": {f"lr {lr:g}": DataParallelConfig(optimizer=adam(lr), schedule=COSINE) for lr in RATES},
    "sgd": {f"lr {lr:g}": DataParallelConfig(optimizer=SgdConfig(lr=lr), schedule=COSINE) for lr in (0.02, 0.05, 0.1)},
    "batch": {f"rho {rho}": BlockAdmmConfig(rho=rho, schedule=COSINE) for rho in (1, 10, 100)},
    "online": {f"rho {rho}": BlockAdmmConfig(form="online", rho=rho, schedule=COSINE) for rho in (10, 100, 1000)},
    "stored": {"rho 1": BlockAdmmConfig(auxiliaries="stored", rho=1, schedule=COSINE)},
    "stored-tuned": {
        f"rho {rho}": BlockAdmmConfig(auxiliaries="stored", rho=rho, schedule=COSINE) for rho in (0.1, 1, 10)
    },
    "altmin": {f"lr {lr:g}": AltMinConfig(lr=lr, schedule=COSINE) for lr in (2e-3, 8e-3)},
    "bcd": {"as published": BcdConfig()},
    "dladmm": {"as published": DlAdmmConfig()},
}
WHOLE = {"bcd": 20, "dladmm": 8}  # these see all samples in every step; their steps

LABELS = {
    "adam": "back-propagation, Adam",
    "sgd": "back-propagation, SGD with momentum",
    "batch": "Block-ADMM, batch form",
    "online": "Block-ADMM, online form",
    "stored": "Block-ADMM, stored auxiliaries",
    "stored-tuned": "Block-ADMM, stored auxiliaries, tuned",
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
    data = fashion_mnist(tune=choice.tune)

    def run(method: str, config: Any, seed: int) -> dict[str, Any]:
        batch = len(data[0].y) if method in WHOLE else 200 if method == "altmin" else 128
        epochs = WHOLE.get(method, EPOCHS // 2 if choice.tune else EPOCHS)
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
