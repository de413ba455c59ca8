"""Does a larger batch, over more ranks, draw better clothes from as many images? Examples/sn_gan.py, judged by a small
classifier of ours: the Frechet distance between its features of 10,000 test images and of as many drawn ones
(Heusel et al. 2017, arXiv:1706.08500, with our classifier in the place of Inception).

    mpirun -n 1 python benchmarks/sn_gan_batch.py --batch 60
    mpirun -n 4 python benchmarks/sn_gan_batch.py --batch 240

Every seed makes its own networks and order; the classifier is the same in all runs, bit for bit.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcopt import Replicator
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import sn_gan

FEATURES = 64


def classifier(train: Shards) -> nn.Module:
    """A network that sorts clothes; without its last layer it gives features, (n, FEATURES)."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, FEATURES),
        nn.ReLU(),
    )
    head = nn.Linear(FEATURES, 10)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 1e-3)
    order = TrainOrder(len(train), 100, seed=0)
    for step in range(order.steps_per_epoch):
        rows = train.rows(order.indices(step, 0, 1))
        loss = F.cross_entropy(head(body(scaled(rows["images"]))), torch.from_numpy(rows["labels"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return body


def scaled(images: np.ndarray) -> Tensor:
    """To [-1, 1], as the generator draws them."""
    return torch.from_numpy(images).float() / 127.5 - 1


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance, in float64."""
    return features.double().mean(0), features.double().T.cov()


def frechet(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two normal distributions."""
    root = torch.linalg.eigvals(one[1] @ two[1]).real.clamp(min=0).sqrt().sum()
    return float((one[0] - two[0]).square().sum() + one[1].trace() + two[1].trace() - 2 * root)


@torch.no_grad()
def drawn(artist: nn.Module, body: nn.Module, count: int) -> Tensor:
    """Features of images that the generator draws, in batches of 1,000 for its batch norm."""
    noise = torch.Generator().manual_seed(99)
    return torch.cat([body(artist(torch.randn(1000, sn_gan.NOISE, generator=noise))) for _ in range(count // 1000)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lr", type=float, default=4e-4)
    args = parser.parse_args()
    replicator = Replicator()
    train, test = Shards(args.data, "train"), Shards(args.data, "test")
    body = classifier(train)
    with torch.no_grad():
        real = moments(body(scaled(test.rows(np.arange(len(test)))["images"])))
    for seed in range(args.seeds):
        start_s = time.monotonic()
        artist, judge, step = sn_gan.build(replicator, seed, args.lr)
        turns = replicator.run(step, sn_gan.batches(replicator, train, args.batch, args.images, seed))
        trained_s = time.monotonic() - start_s
        distance = frechet(real, moments(drawn(artist, body, len(test))))  # alike on all ranks: batch norm is global
        if replicator.world.rank == 0:
            norms = [round(norm, 3) for norm in sn_gan.spectral_norms(judge)]
            print(
                f"ranks {replicator.world.size}, batch {args.batch}, lr {args.lr}, seed {seed}: {len(turns)} turns, "
                f"{trained_s:.0f} s, distance {distance:.2f}, spectral norms {norms}",
                flush=True,
            )


if __name__ == "__main__":
    main()
