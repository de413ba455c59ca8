"""A small network under a dotted name, its weights, and images in a file."""

import sys

import numpy as np
import pytest
import torch

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, classes)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.memory = nn.Embedding(11, 6), nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens):
        return self.head(self.memory(self.embedding(tokens))[0])

class Columns(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A folder with network modules, weights NAME.safetensors and inputs NAME.npy; it is the current one."""
    from safetensors.torch import save_file

    (tmp_path / "small_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "small_networks", raising=False)
    import small_networks

    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    inputs = {
        "Net": rng.normal(size=(7, 1, 8, 8)),
        "Words": rng.integers(0, 11, (3, 6)),
        "Columns": rng.normal(size=(3, 5)),
    }
    for name, values in inputs.items():
        save_file(getattr(small_networks, name)().state_dict(), f"{name}.safetensors")
        np.save(f"{name}.npy", values)
    yield tmp_path
    sys.modules.pop("small_networks", None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("hpcopt.analysis.explain.sources.BLOCK", 3)
