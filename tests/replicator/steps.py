"""A step of one replica, which every mode runs as it stands: a network with batch norm over the whole batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, CLASSES = 6, 3


class GlobalBatchNorm(nn.Module):
    """Normalises by mean and variance over the batches of all replicas (arXiv:1902.00465)."""

    def __init__(self, replicator, features: int) -> None:
        super().__init__()
        self._all_mean = replicator.all_mean
        self.scale, self.shift = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """(n, features), as many rows on every replica."""
        moments = self._all_mean({"mean": x.mean(0), "square": x.square().mean(0)})
        variance = moments["square"] - moments["mean"].square()
        return (x - moments["mean"]) * (variance + 1e-5).rsqrt() * self.scale + self.shift


def network(replicator, dtype=torch.float64) -> nn.Module:
    """The same on all ranks; draws nothing from torch's common generator."""
    model = nn.Sequential(
        nn.Linear(FEATURES, 8), GlobalBatchNorm(replicator, 8), nn.Tanh(), nn.Linear(8, CLASSES, bias=False)
    ).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def build(replicator, dtype=torch.float64, lr: float = 0.1):
    """The model and its step."""
    model = network(replicator, dtype)
    optimizer = replicator.wrap_optimizer(torch.optim.SGD(model.parameters(), lr, momentum=0.9))

    def step(batch: tuple[Tensor, Tensor]) -> float:
        x, y = batch
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(replicator.all_mean(loss.detach()))

    return model, step


def batches(replicator, steps: int, batch: int, dtype=torch.float64) -> list[tuple[Tensor, Tensor]]:
    """This replica's parts; all replicas' together are the same at any number of them."""
    generator = torch.Generator().manual_seed(5)
    n, first = replicator.per_replica_batch_size(batch), replicator.replica_id
    wholes = [torch.randn(batch, FEATURES, generator=generator, dtype=torch.float64) for _ in range(steps)]
    mine = [whole.to(dtype)[first * n : (first + 1) * n] for whole in wholes]
    return [(x, (3 * x[:, 0]).long().abs() % CLASSES) for x in mine]
