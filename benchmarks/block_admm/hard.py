"""Where back-propagation suffers: a sigmoid network of 10 layers, whose gradient vanishes on the way, and a network
of sign activations, which have none. 20,000 images of Fashion-MNIST, batches of 128.

    python -m benchmarks.block_admm.hard --methods sigmoid-admm sign-ste --seeds 0 1 2      run and record
    python -m benchmarks.block_admm.hard                                                     the tables
"""

import itertools

import torch
from torch import Tensor, nn

from benchmarks.block_admm.bench import fashion_mnist, options, record, recorded, spread, train
from hpcopt.models.nondifferentiable import Sign
from hpcopt.optim import ScheduleConfig, SgdConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig

SAMPLES, EPOCHS = 20000, 8
COSINE = ScheduleConfig(name="cosine")
ADAM, FAST_ADAM = AdamWConfig(lr=1e-3, weight_decay=0), AdamWConfig(lr=5e-3, weight_decay=0)


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


def sign_network(activation: type[nn.Module]) -> nn.Sequential:
    """Two hidden layers of signs."""
    return stack([784, 256, 256, 10], activation)


GROWING = BlockAdmmConfig(form="online", rho=0.1, rho_end=100, z_steps=1, optimizer=FAST_ADAM, schedule=COSINE)

METHODS = {
    "sigmoid-sgd": (sigmoid_network, DataParallelConfig(optimizer=SgdConfig(lr=0.05), schedule=COSINE)),
    "sigmoid-adam": (sigmoid_network, DataParallelConfig(optimizer=ADAM, schedule=COSINE)),
    "sigmoid-adam-fast": (sigmoid_network, DataParallelConfig(optimizer=FAST_ADAM, schedule=COSINE)),
    "sigmoid-admm": (sigmoid_network, GROWING),
    "sigmoid-admm-rho1": (sigmoid_network, GROWING.model_copy(update={"rho": 1.0, "rho_end": None})),
    "sign-adam": (lambda: sign_network(Sign), DataParallelConfig(optimizer=ADAM, schedule=COSINE)),
    "sign-ste": (lambda: sign_network(StraightThroughSign), DataParallelConfig(optimizer=ADAM, schedule=COSINE)),
    "sign-admm": (
        lambda: sign_network(Sign),
        BlockAdmmConfig(form="online", rho=1, optimizer=ADAM, schedule=COSINE),
    ),
}

LABELS = {
    "sigmoid-sgd": "10 sigmoid layers, SGD with momentum",
    "sigmoid-adam": "10 sigmoid layers, Adam 1e-3",
    "sigmoid-adam-fast": "10 sigmoid layers, Adam 5e-3",
    "sigmoid-admm": "10 sigmoid layers, Block-ADMM, rho 0.1 to 100",
    "sigmoid-admm-rho1": "10 sigmoid layers, Block-ADMM, rho 1",
    "sign-adam": "signs, back-propagation (reaches the last layer only)",
    "sign-ste": "signs, straight-through estimator",
    "sign-admm": "signs, Block-ADMM",
}


def main() -> None:
    choice = options(__doc__ or "", list(METHODS))
    if choice.methods:
        torch.set_num_threads(1)
        data = fashion_mnist(SAMPLES)
        for method, seed in itertools.product(choice.methods, choice.seeds):
            make, config = METHODS[method]
            torch.manual_seed(seed)
            figures = train(config, make(), *data, batch=128, epochs=EPOCHS, seed=seed)
            record("hard", method, seed, figures)
    else:
        table()


def table() -> None:
    results = recorded("hard")
    print("| network and solver | seeds | test accuracy after each epoch, mean | at the end, mean (range) |")
    print("|---|---|---|---|")
    for method in METHODS:
        if method in results:
            curves = zip(*(run["accuracy"] for run in results[method]), strict=True)
            epochs = " ".join(f"{sum(column) / len(column):.3f}" for column in curves)
            final = spread([float(run["accuracy"][-1]) for run in results[method]])
            print(f"| {LABELS[method]} | {len(results[method])} | {epochs} | {final} |")


if __name__ == "__main__":
    main()
