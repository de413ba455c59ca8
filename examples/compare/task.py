"""What all four scripts train: handwritten digits, 1,437 to train on and 360 to test on."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

EPOCHS, BATCH, LR = 8, 96, 0.3  # the batch is over all ranks


def digits(train: bool) -> TensorDataset:
    """Images, (n, 64), and their classes."""
    found = load_digits()
    x, y = torch.from_numpy(found.data / 16).float(), torch.from_numpy(found.target)
    mine = (torch.arange(len(y)) % 5 != 0) == train
    return TensorDataset(x[mine], y[mine])


def network() -> nn.Module:
    """A perceptron."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def correct(model: nn.Module) -> float:
    """Of the test images."""
    x, y = digits(train=False).tensors
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())
