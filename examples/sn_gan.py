"""A GAN with spectral normalisation (Miyato et al. 2018, arXiv:1802.05957) that draws clothes: two networks, two
optimizers in unequal turns, and a batch norm over the batches of all replicas.

    hpcopt prepare fashion-mnist --data-dir data
    mpirun -n 4 python examples/sn_gan.py --batch 256
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from hpcopt import Replicator
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder

NOISE, TURNS = 32, 2  # values that an image is made from; steps of the critic for each one of the generator


class GlobalBatchNorm(nn.Module):
    """Normalises channels by their mean and variance over the batches of all replicas."""

    def __init__(self, replicator: Replicator, channels: int) -> None:
        super().__init__()
        self.all_mean = replicator.all_mean
        self.scale, self.shift = (nn.Parameter(torch.full((channels, 1, 1), v)) for v in (1.0, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width)."""
        moments = self.all_mean([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
        mean, square = (m[:, None, None] for m in moments)
        return (x - mean) * (square - mean.square() + 1e-5).rsqrt() * self.scale + self.shift


def generator(replicator: Replicator) -> nn.Module:
    """Images, (n, 1, 28, 28), in [-1, 1], of noise, (n, NOISE)."""
    up = lambda a, b: nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)  # noqa: E731
    first = [nn.Linear(NOISE, 32 * 49), nn.Unflatten(1, (32, 7, 7)), GlobalBatchNorm(replicator, 32), nn.ReLU()]
    return nn.Sequential(*first, up(32, 16), GlobalBatchNorm(replicator, 16), nn.ReLU(), up(16, 1), nn.Tanh())


def normalised(layer: nn.Module) -> nn.Module:
    """Its weight divided by its spectral norm, which ten power iterations follow at every call."""
    layer = spectral_norm(layer, n_power_iterations=10)
    for _ in range(20):
        _ = layer.weight  # of new weights the iteration has a long way to go
    return layer


def critic() -> nn.Module:
    """A score, (n, 1), of images: the larger, the more it takes them for real."""
    down = lambda a, b: normalised(nn.Conv2d(a, b, 4, stride=2, padding=1))  # noqa: E731
    return nn.Sequential(
        down(1, 16),
        nn.LeakyReLU(0.1),
        down(16, 32),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        normalised(nn.Linear(32 * 49, 1)),
    )


def off_one(network: nn.Module) -> float:
    """How far the spectral norm of a weight at the network's next call is from 1, at most over its layers."""
    layers = [layer for layer in copy.deepcopy(network) if hasattr(layer, "parametrizations")]  # looking iterates, too
    return max(abs(float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) - 1) for layer in layers)


def build(replicator: Replicator, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The generator and the critic, alike on all replicas."""
    torch.manual_seed(seed)
    return generator(replicator), critic()


def build_step(
    replicator: Replicator, artist: nn.Module, judge: nn.Module, seed: int = 0, lr: float = 4e-4, judge_lr: float = 4e-4
):
    """The step of one replica."""
    artists, judges = (
        replicator.wrap_optimizer(torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.9)))
        for network, rate in ((artist, lr), (judge, judge_lr))
    )
    noise = torch.Generator().manual_seed(1000 * seed + replicator.replica_id)

    def step(batches: list[Tensor]) -> tuple[float, float]:
        for real in batches:
            with torch.no_grad():
                fake = artist(torch.randn(len(real), NOISE, generator=noise))
            judge_loss = (1 - judge(real)).relu().mean() + (1 + judge(fake)).relu().mean()
            judges.zero_grad()
            judge_loss.backward()
            judges.step()
        artist_loss = -judge(artist(torch.randn(len(real), NOISE, generator=noise))).mean()
        artists.zero_grad()
        artist_loss.backward()
        artists.step()
        losses = replicator.all_mean([judge_loss.detach(), artist_loss.detach()])
        return float(losses[0]), float(losses[1])

    return step


def batches(
    replicator: Replicator, shards: Shards, batch: int, images: int, seed: int = 0, turns: int = TURNS
) -> Iterator[list[Tensor]]:
    """This replica's parts of so many batches at a time, until all replicas together have seen so many images."""
    replicator.per_replica_batch_size(batch)
    order = TrainOrder(len(shards), batch, seed)
    for first in range(0, images // batch // turns * turns, turns):
        rows = [order.indices(first + k, replicator.replica_id, replicator.num_replicas_in_sync) for k in range(turns)]
        yield [torch.from_numpy(shards.rows(r)["images"]).float() / 127.5 - 1 for r in rows]


def main() -> None:
    """Train, and print where it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    parser.add_argument("--batch", type=int, default=60, help="over all replicas")
    parser.add_argument("--images", type=int, default=240_000)
    args = parser.parse_args()
    replicator = Replicator()
    artist, judge = build(replicator)
    step, off = build_step(replicator, artist, judge), []

    def watched(batches: list[Tensor]) -> tuple[float, float]:
        losses = step(batches)
        off.append(off_one(judge))
        return losses

    losses = replicator.run(watched, batches(replicator, Shards(args.data, "train"), args.batch, args.images))
    replicator.world.require_same([*artist.parameters(), *judge.parameters()], "the parameters")
    if replicator.world.rank == 0:
        print(
            f"{len(losses)} turns, losses {losses[-1][0]:.3f} and {losses[-1][1]:.3f}, spectral norms within "
            f"{max(off):.4f} of 1 at every turn"
        )


if __name__ == "__main__":
    main()
