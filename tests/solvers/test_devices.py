"""A step makes every tensor on the device of its parameters. torch's "meta" device, where tensors have no values,
stands for one that is not the CPU: what was made on the CPU, or read by numpy, and meets the parameters raises.

Numbers that a step reads from tensors are 0.5 here; each such reading makes a GPU wait, so they are counted.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.compress import PowerSGD
from hpcopt.exchange import NativeConfig, RingConfig
from hpcopt.models.nmf import Nmf
from hpcopt.optim import SgdConfig, SignumConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.optim.lamb import LambConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Task
from hpcopt.solvers.block_admm.deepfacto import DeepFactoConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.gossip import GossipConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig

META = torch.device("meta")
STEPS = 3

LOSS = OutputLoss(
    inputs=lambda batch: batch.tensors["x"],
    criterion=lambda logits, batch: F.cross_entropy(logits, batch.tensors["y"]),
    example=torch.zeros(1, 6, device=META),
)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3)).to(META)


class Images(nn.Module):
    """Every kind of layer that K-FAC knows."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 8)
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=2), nn.GroupNorm(2, 8)
        )
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x):
        h = self.convolutions(x.unflatten(1, (1, 6, 6))).flatten(2).transpose(1, 2)
        h = h + self.words(torch.zeros(len(x), 1, dtype=torch.int64, device=x.device))
        return self.head(self.norm(self.dropout(self.attention(h, h, h)[0])).mean(1))


def images() -> nn.Module:
    return Images().to(META)


def factors() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), Nmf(7, 2, 3), nn.Linear(2, 3)).to(META)


def batch(size: int, features: int = 6) -> TensorBatch:
    tensors = {"x": torch.zeros(4, features), "y": torch.zeros(4, dtype=torch.int64)}
    return TensorBatch(tensors, torch.arange(4), 4 * size).to(META)


@pytest.fixture
def readings(monkeypatch) -> list[str]:
    """Lets values be read from tensors without any, and lists the readings."""
    found: list[str] = []

    def read(name: str, value: object):
        def method(self, *arguments):
            if self.device != META:
                return original[name](self, *arguments)
            found.append(name)
            return value if name != "tolist" else torch.full(self.shape, value).tolist()

        return method

    every = lambda x: torch.empty(x.numel(), x.dim(), dtype=torch.int64, device=META)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "nonzero", every)
    monkeypatch.setattr(World, "require_same", lambda world, tensors, what: None)
    original = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "__float__", "__bool__")}
    for name, value in {"item": 0.5, "tolist": 0.5, "__float__": 0.5, "__bool__": True}.items():
        monkeypatch.setattr(torch.Tensor, name, read(name, value))
    return found


def train(config, exchange, model, size: int) -> None:
    def program(transport):
        solver = config.build(
            Task(model(), LOSS), Context(world=World(transport), exchange=exchange, steps=STEPS, device=META)
        )
        for _ in range(STEPS):
            solver.step(batch(solver.data_size, 36 if model is images else 6))
        solver.gather()
        assert {p.device for p in solver.model.parameters()} == {META}

    run_ranks(size, program)


SGD = DataParallelConfig(optimizer=SgdConfig(momentum=0.9), accumulate=2)
CASES = {
    "ring": (SGD, RingConfig(), network),
    "native": (SGD, NativeConfig(), network),
    "powersgd": (SGD, RingConfig(codec=PowerSGD(rank=1, min_compression=1)), network),
    "adamw, clipped": (DataParallelConfig(optimizer=AdamWConfig(), clip_norm=1.0), RingConfig(), network),
    "lamb": (DataParallelConfig(optimizer=LambConfig()), RingConfig(), network),
    "signum": (DataParallelConfig(optimizer=SignumConfig()), RingConfig(), network),
    "push-sum": (GossipConfig(optimizer=SGD.optimizer, accumulate=2), None, network),
    "metropolis": (GossipConfig(mixing="metropolis", graph="ring"), None, network),
    "block_admm": (BlockAdmmConfig(measure_every=1), RingConfig(), network),
    "block_admm, stored": (BlockAdmmConfig(auxiliaries="stored", in_flight=2, blocks=2), RingConfig(), network),
    **{
        f"kaisa, {settings}": (KaisaConfig(factor_every=1, inverse_every=2, **settings), RingConfig(), images)
        for settings in (
            {},
            {"fraction": 0.5},
            {"method": "eigen"},
            {"method": "ekfac"},
            {"method": "low_rank", "rank": 2},
            {"fisher": "sampled"},
            {"fisher": "sampled", "distribution": "bernoulli"},
            {"damping_every": 1, "accumulate": 2},
            {"refresh_tolerance": 0.1, "graft": True},
            {"inverse_lag": 1, "factor_dtype": "bfloat16"},
            {"max_size": 4, "large": "blocked"},
            {"sharing": "reduce", "batch_every": 2, "position_every": 2},
        )
    },
    "deepfacto": (DeepFactoConfig(plain=0.0, code_steps=2, sweeps=2), RingConfig(), factors),
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("config", "exchange", "model"), CASES.values(), ids=CASES)
def test_nothing_is_made_on_another_device(config, exchange, model, size, readings):
    train(config, exchange, model, size)


@pytest.mark.parametrize("optimizer", [SgdConfig(), AdamWConfig(), LambConfig(), SignumConfig()], ids=lambda o: o.name)
def test_data_parallelism_reads_only_its_losses_and_only_at_the_end_of_a_step(optimizer, readings):
    train(DataParallelConfig(optimizer=optimizer, accumulate=2), RingConfig(), network, 1)
    assert readings == ["item"] * 2 * STEPS


def test_state_that_is_made_on_the_cpu_is_noticed(readings, monkeypatch):
    """Else the cases above would say nothing: here Signum's momentum does not follow its parameters."""
    monkeypatch.setattr(torch, "zeros_like", lambda x, **_: torch.zeros(x.shape))
    with pytest.raises(RuntimeError, match="device"):
        train(*CASES["signum"], 2)
