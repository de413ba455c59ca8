"""Where back-propagation suffers: a sigmoid network of 10 layers, whose gradient vanishes on the way, and a network
of sign activations, which have none. 20,000 images of Fashion-MNIST, batches of 128.

    python -m benchmarks.block_admm.hard --tune --methods sigmoid-admm --seeds 0       settings, on held-out images
    python -m benchmarks.block_admm.hard --methods sigmoid-admm --seeds 0 1 2          the best one: run and record
    python -m benchmarks.block_admm.hard                                               the table
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.block_admm.bench import Settings, chosen, fashion_mnist, options, recorded, run_all, spread, train
from hpcopt.models.nondifferentiable import Sign
from hpcopt.optim import CosineConfig, OptimizerConfig, SgdConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig

SAMPLES, EPOCHS = 20000, 8
COSINE = CosineConfig()
SIGN_WIDTHS = [784, 256, 256, 10]


class StraightThrough(torch.autograd.Function):
    """Sign with the derivative of the clipped identity (arXiv:1308.3432, arXiv:1602.02830)."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.where(z >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return slope * (z.abs() <= 1)


class StraightThroughSign(nn.Module):
    """Sign for back-propagation."""

    def forward(self, z: Tensor) -> Tensor:
        return StraightThrough.apply(z)


def sigmoid_network() -> nn.Sequential:
    """Ten linear layers, nine sigmoids, the weights as Glorot and Bengio 2010 draw them."""
    model = stack([784, *[128] * 9, 10], nn.Sigmoid)
    for layer in model[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def stack(widths: list[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def adam(lr: float) -> AdamWConfig:
    return AdamWConfig(lr=lr, weight_decay=0)


def back_propagation(
    rates: Sequence[float], optimizer: Callable[[float], OptimizerConfig], constant: Sequence[float] = ()
) -> Settings:
    """With rates that fall to zero along a cosine, and with some that stay."""
    falling = {f"lr {lr:g}": DataParallelConfig(optimizer=optimizer(lr), schedule=COSINE) for lr in rates}
    return falling | {f"constant lr {lr:g}": DataParallelConfig(optimizer=optimizer(lr)) for lr in constant}


def block_admm(rhos: Sequence[tuple[float, float]], rates: Sequence[float], z_steps: int) -> Settings:
    return {
        f"rho {start:g} to {end:g}, lr {lr:g}, {z_steps} z steps": BlockAdmmConfig(
            form="online", rho=start, rho_end=end, z_steps=z_steps, optimizer=adam(lr), schedule=COSINE
        )
        for (start, end), lr in itertools.product(rhos, rates)
    }


NETWORKS = {
    "sigmoid": sigmoid_network,
    "sign-adam": lambda: stack(SIGN_WIDTHS, Sign),
    "sign-admm": lambda: stack(SIGN_WIDTHS, Sign),
    "sign-ste": lambda: stack(SIGN_WIDTHS, StraightThroughSign),
}
METHODS: dict[str, Settings] = {
    "sigmoid-sgd": back_propagation(
        (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10), lambda lr: SgdConfig(lr=lr), constant=(0.2, 0.5, 1, 2)
    ),
    "sigmoid-adam": back_propagation(
        (3e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 7e-3, 1e-2), adam, constant=(1e-3, 2e-3, 3e-3, 5e-3)
    ),
    "sigmoid-admm": {
        **block_admm([(0.1, 100), (1, 100)], (2e-3, 5e-3), z_steps=1),
        **block_admm([(0.1, 10), (0.1, 100)], (5e-3,), z_steps=5),
    },
    "sign-adam": back_propagation((5e-4, 1e-3, 2e-3, 5e-3), adam),
    "sign-ste": back_propagation((5e-4, 1e-3, 2e-3, 5e-3), adam),
    "sign-admm": block_admm([(1, 1), (10, 10)], (1e-3, 2e-3), z_steps=3),
}

LABELS = {
    "sigmoid-sgd": "10 sigmoid layers, SGD with momentum",
    "sigmoid-adam": "10 sigmoid layers, Adam",
    "sigmoid-admm": "10 sigmoid layers, Block-ADMM",
    "sign-adam": "signs, back-propagation (reaches the last layer only)",
    "sign-ste": "signs, straight-through estimator",
    "sign-admm": "signs, Block-ADMM",
}


def main() -> None:
    choice = options(__doc__ or "", list(METHODS))
    if not choice.methods:
        table()
        return
    data = fashion_mnist(SAMPLES, tune=choice.tune)

    def run(method: str, config: Any, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        network = NETWORKS["sigmoid" if method.startswith("sigmoid") else method]()
        return train(config, network, *data, batch=128, epochs=EPOCHS, seed=seed)

    run_all("hard", METHODS, choice, run)


def table() -> None:
    results = recorded("hard")
    print("| network and solver | setting (of so many) | seeds | after each epoch, mean | at the end, mean (range) |")
    print("|---|---|---|---|---|")
    for method, settings in METHODS.items():
        if method in results:
            label = chosen("hard", method, settings)
            runs = [run for run in results[method] if run["setting"] == label]
            curves = zip(*(run["accuracy"] for run in runs), strict=True)
            epochs = " ".join(f"{sum(column) / len(column):.3f}" for column in curves)
            final = spread([run["accuracy"][-1] for run in runs])
            print(f"| {LABELS[method]} | {label} ({len(settings)}) | {len(runs)} | {epochs} | {final} |")


if __name__ == "__main__":
    main()
