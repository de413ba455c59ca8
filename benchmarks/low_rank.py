"""ATOMO-SVD against PowerSGD at equal bytes, on the gradients of a residual network while it trains on Fashion-MNIST.

    python benchmarks/low_rank.py [--data /usr/share/datasets/fashion-mnist] [--out low_rank.h5]

Eight ranks each hold the gradient of their own part of a batch; every matrix (a convolution as outputs x inputs 9) is
sent with r (rows + columns) floats. Reported are the relative error of the mean gradient,
``|estimate - mean| / |mean|``, over all matrices, and the time of encoding and decoding on one rank. PowerSGD runs
cold (a random start), warm (started from its last result, as it is used; its error feedback is left out here, for
what is compared is one gradient) and ATOMO with the same budget of singular vectors.
"""

import argparse
import gzip
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpcopt.compress import Atomo, Layout, PowerSGD, TopK
from hpcopt.models.resnet import ResNetConfig

RANKS, BATCH = 8, 32  # ranks, and images on each
WATCHED = (50, 100, 150, 200, 250, 300)  # steps whose gradients are compared


@dataclass(frozen=True)
class Result:
    """One method at one rank r."""

    method: str
    rank: int
    megabytes: float  # sent by a rank
    error: float
    time_ms: float


def batches(folder: Path, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (RANKS * BATCH, 1, 28, 28) and labels, drawn with a fixed seed."""
    images = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = images.reshape(-1, 1, 28, 28)
    random = np.random.default_rng(0)
    for _ in range(steps):
        chosen = random.choice(labels.size, RANKS * BATCH, replace=False)
        yield (
            torch.from_numpy((images[chosen] / np.float32(255) - np.float32(0.286)) / np.float32(0.353)),
            torch.from_numpy(labels[chosen].astype(np.int64)),
        )


def train(folder: Path) -> tuple[Layout, dict[int, list[Tensor]], float]:
    """Train, and return the layout of the matrices, every rank's flat gradient at the watched steps, and the last
    loss.
    """
    torch.manual_seed(0)
    model = ResNetConfig(blocks=1, width=16).build((1, 28, 28), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    layout = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    kept: dict[int, list[Tensor]] = {}
    for step, (x, y) in enumerate(batches(folder, WATCHED[-1] + 1)):
        if step in WATCHED:
            kept[step] = []
            for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
                grads = torch.autograd.grad(
                    F.cross_entropy(model(images), labels), [p for p in model.parameters() if p.dim() > 1]
                )
                kept[step].append(torch.cat([g.reshape(-1) for g in grads]))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:64]), y[:64])
        loss.backward()
        optimizer.step()
    return layout, kept, float(loss)


def powersgd(layout: Layout, kept: dict[int, list[Tensor]], rank: int, warm: bool) -> Result:
    config = PowerSGD(rank=rank, min_compression=1, warm_start=warm)
    states = [config.build() for _ in range(RANKS)]
    errors, seconds, sent = [], [], 0
    for step, gradients in kept.items():
        for again in range(2 if warm and step == WATCHED[0] else 1):  # a warm start needs a first time
            for state in states:
                state.load_state_dict({k: t for k, t in state.state_dict().items() if k.startswith("right/")})
            buckets = [g.clone() for g in gradients]
            rounds = [
                state.rounds(bucket, layout, seed=step + again) for state, bucket in zip(states, buckets, strict=True)
            ]
            start, sent, spent = time.thread_time(), 0, 0.0
            while True:
                start = time.thread_time()
                first = next(rounds[0], None)
                spent += time.thread_time() - start
                others = [next(generator, None) for generator in rounds[1:]]
                if first is None:
                    break
                buffers = [first.buffer, *(other.buffer for other in others if other is not None)]
                total = torch.stack(buffers).sum(0)
                sent += 4 * total.numel()
                for buffer in buffers:
                    buffer.copy_(total)
            mean = torch.stack(gradients).mean(0)
        errors.append(float((buckets[0] / RANKS - mean).norm() / mean.norm()))
        seconds.append(spent)
    return Result(
        f"PowerSGD, {'warm' if warm else 'cold'}",
        rank,
        sent / 1e6,
        float(np.mean(errors)),
        1e3 * float(np.median(seconds)),
    )


def by_codec(layout: Layout, kept: dict[int, list[Tensor]], rank: int, method: str) -> Result:
    sizes = [prod(shape) for shape in layout.values()]
    codecs = []
    for shape in layout.values():
        rows, columns, n = shape[0], prod(shape[1:]), prod(shape)
        share = min(1.0, min(rank, rows, columns) * (rows + columns) / n)
        if method == "top-k":
            codecs.append(TopK(fraction=share / 2))  # a place for every value
        else:
            codecs.append(Atomo(basis="svd" if method == "ATOMO-SVD" else "entries", share=share, columns=columns))
    errors, seconds, sent = [], [], 0
    for step, gradients in kept.items():
        estimate, mean = torch.zeros_like(gradients[0]), torch.stack(gradients).mean(0)
        for r, gradient in enumerate(gradients):
            start, sent = time.thread_time(), 0
            for codec, part, out in zip(codecs, gradient.split(sizes), estimate.split(sizes), strict=True):
                payload = codec.encode(part.contiguous(), seed=1000 * step + r)
                codec.decode_add(payload, out, 1 / RANKS)
                sent += payload.numel()
            seconds.append(time.thread_time() - start)
        errors.append(float((estimate - mean).norm() / mean.norm()))
    return Result(method, rank, sent / 1e6, float(np.mean(errors)), 1e3 * float(np.median(seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the IDX files"
    )
    parser.add_argument("--out", help="HDF5 file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    layout, kept, loss = train(arguments.data)
    dense = sum(prod(shape) for shape in layout.values()) * 4 / 1e6
    print(f"ResNet-8, {dense:.3f} MB of matrices, loss {loss:.2f} after {WATCHED[-1]} steps\n")
    print("| method | r | MB sent | relative error of the mean | encode and decode, ms |\n|---|---|---|---|---|")
    results = []
    for rank in (1, 2, 4):
        results += [powersgd(layout, kept, rank, warm=False), powersgd(layout, kept, rank, warm=True)]
        results += [by_codec(layout, kept, rank, method) for method in ("ATOMO-SVD", "ATOMO entries", "top-k")]
        for x in results[-5:]:
            print(f"| {x.method} | {x.rank} | {x.megabytes:.3f} | {x.error:.2f} | {x.time_ms:.1f} |", flush=True)
    if arguments.out:
        with h5py.File(arguments.out, "w") as file:
            file.attrs["dense_megabytes"], file.attrs["loss"] = dense, loss
            for field in ("method", "rank", "megabytes", "error", "time_ms"):
                file[field] = [getattr(result, field) for result in results]


if __name__ == "__main__":
    main()
