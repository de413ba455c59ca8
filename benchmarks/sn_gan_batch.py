"""Does a larger batch, over more ranks, draw better clothes from as many images? Examples/sn_gan.py, judged by a small
classifier of ours: the Frechet distance between its features of 10,000 real images and of as many drawn ones
(Heusel et al. 2017, arXiv:1706.08500, with our classifier in the place of Inception).

    python benchmarks/sn_gan_batch.py tune --batch 60                    each line a setting, judged by training images
    python benchmarks/sn_gan_batch.py tune --batch 240
    python benchmarks/sn_gan_batch.py run --batch 60 --ranks 1 ...       one setting, judged by test images
    python benchmarks/sn_gan_batch.py run --batch 240 --ranks 4 ...

Both batches are tuned over the same random settings: the two learning rates and the critic's steps for each one of the
generator. Tuning takes one rank, which equals four to rounding. Ranks are threads of this process. Every seed makes its
own networks and order; the classifier is the same in all runs, bit for bit.
"""

import argparse
import random
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcopt import Replicator
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import sn_gan

FEATURES, COUNT = 64, 10_000  # of an image; of images that are compared


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


SETTINGS = 6  # that are tried


def settings() -> list[dict]:
    """The same for both batches: log-uniform learning rates, 1 or 2 steps of the critic."""
    draw = random.Random(0)
    rate = lambda: round(10 ** draw.uniform(-3.7, -2), 5)  # noqa: E731
    return [{"lr": rate(), "judge_lr": rate(), "turns": draw.choice((1, 2))} for _ in range(SETTINGS)]


class Runs:
    """Trains, and judges by some of the real images."""

    def __init__(self, data: Path, split: str) -> None:
        self.train = Shards(data, "train")
        self.body = classifier(self.train)
        real = Shards(data, split).rows(np.arange(COUNT))["images"]
        with torch.no_grad():
            self.real = moments(self.body(scaled(real)))
        self.building = threading.Lock()  # torch's global generator is one for all ranks

    def __call__(self, ranks: int, batch: int, images: int, seed: int, lr: float, judge_lr: float, turns: int) -> str:
        """Gives what came out, as a line."""
        start_s = time.monotonic()

        def program(transport: Transport) -> tuple[nn.Module, list[float]]:
            replicator = Replicator(World(transport))
            with self.building:
                artist, judge = sn_gan.build(replicator, seed)
            step = sn_gan.build_step(replicator, artist, judge, seed, lr, judge_lr)

            def watched(batches: list[Tensor]) -> float:
                step(batches)
                return sn_gan.off_one(judge) if transport.rank == 0 else 0.0

            parts = sn_gan.batches(replicator, self.train, batch, images, seed, turns)
            return artist, replicator.run(watched, parts)

        artist, off = run_ranks(ranks, program)[0]
        distance = frechet(self.real, moments(run_ranks(1, lambda t: drawn(alone(artist, t), self.body, COUNT))[0]))
        return (
            f"ranks {ranks}, batch {batch}, lr {lr}, judge_lr {judge_lr}, turns {turns}, images {images}, seed {seed}: "
            f"{len(off)} steps of the generator, {time.monotonic() - start_s:.0f} s, distance {distance:.2f}, spectral "
            f"norms within {max(off):.4f} of 1"
        )


def alone(artist: nn.Module, transport: Transport) -> nn.Module:
    """The generator with its batch norm over one rank."""
    for layer in artist:
        if isinstance(layer, sn_gan.GlobalBatchNorm):
            layer.all_mean = Replicator(World(transport)).all_mean
    return artist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["tune", "run"])
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of run; tune takes 0")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--judge-lr", type=float)
    parser.add_argument("--turns", type=int)
    args = parser.parse_args()
    if args.action == "tune":
        runs = Runs(args.data, "train")
        for setting in settings():
            print(runs(args.ranks, args.batch, args.images, 0, **setting), flush=True)
    else:
        runs = Runs(args.data, "test")
        for seed in args.seeds:
            line = runs(args.ranks, args.batch, args.images, seed, args.lr, args.judge_lr, args.turns)
            print(line, flush=True)


if __name__ == "__main__":
    main()
