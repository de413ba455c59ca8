"""Learned gradient compression beside shared top-k and dense sums: residual networks on Fashion-MNIST of half the side.

    mpirun -n 2 hpcopt study benchmarks/lgc.toml [--set base.steps=360]
    hpcopt study report studies/lgc

Four ranks as threads, batches of 64. The first twelfth of the steps is dense, in the next quarter the autoencoder
learns, and codes may travel in the rest: where they err by less than half, or always. Beside LGC stand shared top-k at
the same places, and at two fifths of them. For each phase: kilobytes a step and rank; for the last one, how many of its
steps had codes and what the decoder's relative squared error was. CPU seconds are those of all ranks.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange, ExchangeConfig, LgcConfig, RingConfig
from hpcopt.models.resnet import ResNetConfig
from hpcopt.store.shards import Shards

RANKS, BATCH, FRACTION = 4, 64, 0.01
ALWAYS = 1e6  # relative squared error up to which codes travel
PLAIN = 0.3  # rate of SGD without momentum, as error feedback wants it; the same in all rows


@dataclass(frozen=True)
class Pictures:
    """Images of 14 x 14 pixels about 0, and labels."""

    x: Tensor
    y: Tensor

    @classmethod
    @cache
    def of(cls, folder: str, split: str) -> "Pictures":
        shards = Shards(Path(folder), split)
        rows = shards.rows(np.arange(len(shards)))
        x = torch.from_numpy(rows["images"]).float().reshape(-1, 1, 28, 28) / 255
        return cls((F.avg_pool2d(x, 2) - 0.286) / 0.353, torch.from_numpy(rows["labels"]).long())


def rows(steps: int) -> dict[str, ExchangeConfig]:
    """What is compared."""
    phases = {"dense_steps": steps // 12, "learning_steps": steps // 4, "overlap": False}
    return {
        "dense ring": RingConfig(overlap=False),
        "LGC, ring": LgcConfig(fraction=FRACTION, **phases),
        "LGC, server": LgcConfig(fraction=FRACTION, instance="server", **phases),
        "LGC, ring, codes always": LgcConfig(fraction=FRACTION, worst=ALWAYS, **phases),
        "LGC, server, codes always": LgcConfig(fraction=FRACTION, instance="server", worst=ALWAYS, **phases),
        "shared top-k": LgcConfig(fraction=FRACTION, worst=0, **phases),
        "shared top-k, fewer": LgcConfig(fraction=0.4 * FRACTION, worst=0, **phases),
    }


def trained(point: dict[str, Any]) -> dict[str, float]:
    """A run over all ranks: accuracy; kilobytes a step and rank in the three phases; the share of the last phase's
    steps in which a bucket went as a code, and the autoencoder's error, mean over them; CPU seconds.
    """
    steps, seed, blocks = point["steps"], point["seed"], point["blocks"]
    config = rows(steps)[point["row"]]
    training, test = (Pictures.of(point["data"], split) for split in ("train", "test"))
    torch.manual_seed(seed)
    networks = [ResNetConfig(blocks=blocks).build((1, 14, 14), 10) for _ in range(RANKS)]
    bounds = (steps // 12, steps // 12 + steps // 4, steps)
    start_s = time.process_time()

    def program(transport: Transport) -> tuple[list[int], list[dict[str, float]]]:
        world, model = World(transport), networks[transport.rank]
        exchange = Exchange(world, model, config, mean=True, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        mine = slice(world.rank * BATCH // RANKS, (world.rank + 1) * BATCH // RANKS)
        world.traffic.lap()
        sent, told = [], []
        for step in range(steps):
            chosen = torch.randint(len(training.y), (BATCH,), generator=generator)[mine]
            exchange.zero()
            F.cross_entropy(model(training.x[chosen]), training.y[chosen]).backward()  # type: ignore[no-untyped-call]
            exchange.finish()
            rate = PLAIN * min(1.0, 20 * (step + 1) / steps) * (1 + np.cos(np.pi * step / steps)) / 2
            with torch.no_grad():
                for p in model.parameters():
                    assert p.grad is not None
                    p.sub_(p.grad, alpha=rate)
            sent.append(world.traffic.lap().sent_bytes)
            told.append(dict(exchange.metrics()))
        return sent, told

    ranks = run_ranks(RANKS, program)
    cpu_s = time.process_time() - start_s
    sent = np.mean([sent for sent, _ in ranks], axis=0)
    last = ranks[0][1][bounds[1] :]
    phases = zip(("dense_kb", "learning_kb", "last_kb"), np.split(sent, bounds[:2]), strict=True)
    return {
        "accuracy": accuracy(networks[0], test),
        **{name: float(part.mean()) / 1e3 for name, part in phases},
        "coded": float(np.mean([told.get("coded_buckets", 0.0) > 0 for told in last])),
        "error": float(np.mean([told.get("autoencoder_error", np.nan) for told in last])),
        "cpu_s": cpu_s,
    }


@torch.no_grad()
def accuracy(model: nn.Module, test: Pictures) -> float:
    right = [model(x).argmax(1) == y for x, y in zip(test.x.split(1000), test.y.split(1000), strict=True)]
    return float(torch.cat(right).float().mean())
