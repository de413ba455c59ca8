"""Fashion-MNIST, 60,000 images, 784-256-256-10 ReLU, 6 epochs of batches of 128: Block-ADMM beside back-propagation and
beside other solvers that split the network.

    python -m benchmarks.block_admm.accuracy --methods adam batch --seeds 0 1 2      run and record
    python -m benchmarks.block_admm.accuracy                                          the table of what is recorded
"""

import itertools

import torch
from torch import nn

from benchmarks.block_admm.bench import fashion_mnist, options, record, recorded, spread, train
from hpcopt.optim import ScheduleConfig, SgdConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.splitting.altmin import AltMinConfig
from hpcopt.solvers.splitting.bcd import BcdConfig
from hpcopt.solvers.splitting.dladmm import DlAdmmConfig

COSINE = ScheduleConfig(name="cosine")
ADAM = AdamWConfig(lr=1e-3, weight_decay=0)

METHODS = {
    "adam": DataParallelConfig(optimizer=ADAM, schedule=COSINE),
    "sgd": DataParallelConfig(optimizer=SgdConfig(lr=0.05), schedule=COSINE),
    "batch": BlockAdmmConfig(rho=10, schedule=COSINE),
    "online": BlockAdmmConfig(form="online", rho=100, schedule=COSINE),
    "online-rho10": BlockAdmmConfig(form="online", rho=10, schedule=COSINE),
    "stored": BlockAdmmConfig(auxiliaries="stored", rho=1, schedule=COSINE),
    "altmin": AltMinConfig(schedule=COSINE),
    "bcd": BcdConfig(),
    "dladmm": DlAdmmConfig(),
}
WHOLE = {"bcd": 50, "dladmm": 50}  # these see all samples in every step; their steps

LABELS = {
    "adam": "back-propagation, Adam",
    "sgd": "back-propagation, SGD with momentum",
    "batch": "Block-ADMM, batch form, rho 10",
    "online": "Block-ADMM, online form, rho 100",
    "online-rho10": "Block-ADMM, online form, rho 10",
    "stored": "Block-ADMM, stored auxiliaries, rho 1",
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
    if choice.methods:
        torch.set_num_threads(1)
        data = fashion_mnist()
        for method, seed in itertools.product(choice.methods, choice.seeds):
            batch, epochs = (60000, WHOLE[method]) if method in WHOLE else (200 if method == "altmin" else 128, 6)
            figures = train(METHODS[method], network(seed), *data, batch=batch, epochs=epochs, seed=seed)
            record("accuracy", method, seed, {**figures, "epochs": epochs})
    else:
        table()


def table() -> None:
    results = recorded("accuracy")
    sgd = [run["accuracy"][-1] for run in results["sgd"]]
    print("| solver | seeds | passes over the data | test accuracy, mean (range) | points over SGD |")
    print("|---|---|---|---|---|")
    for method in METHODS:
        if method in results:
            runs = results[method]
            final = [float(run["accuracy"][-1]) for run in runs]
            points = 100 * (sum(final) / len(final) - sum(sgd) / len(sgd))
            passes = max(int(run.get("epochs", 6)) for run in runs)
            print(f"| {LABELS[method]} | {len(runs)} | {passes} | {spread(final)} | {points:+.2f} |")


if __name__ == "__main__":
    main()
