"""ATOMO-SVD against PowerSGD at equal bytes, on the gradients of a residual network while it trains on Fashion-MNIST.

    python benchmarks/low_rank.py [--data /usr/share/datasets/fashion-mnist] [--gradients kept.h5] [--out low_rank.h5]

Eight ranks each hold the gradient of their own part of a batch; every matrix (a convolution as outputs x inputs 9) is
sent with r (rows + columns) floats. Reported are the relative error of the mean gradient,
``|estimate - mean| / |mean|``, over all matrices, and the time of encoding and decoding on one rank. PowerSGD runs
cold (a random start), warm (started from its last result, as it is used; its error feedback is left out here, for
what is compared is one gradient) and ATOMO with the same budget of singular vectors.

Training takes minutes; ``--gradients`` keeps what it yields, so that times can be taken again on a quiet machine.
"""

import argparse
import gzip
import os
import time
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
WATCHED = (100, 300, 500, 800, 1200)  # steps whose gradients are compared


@dataclass(frozen=True)
class Result:
    """One method at one rank r."""

    method: str
    rank: int
    megabytes: float  # sent by a rank
    error: float
    time_ms: float


@dataclass(frozen=True)
class Gradients:
    """What a training run yields: every rank's flat gradient of all matrices at the watched steps."""

    layout: Layout
    kept: dict[int, list[Tensor]]
    accuracy: float  # on the test images, at the end

    def save(self, path: Path) -> None:
        """Write an HDF5 file."""
        with h5py.File(path, "w") as file:
            file.attrs["accuracy"] = self.accuracy
            shapes = file.create_group("layout", track_order=True)
            for name, shape in self.layout.items():
                shapes[name] = shape
            for step, gradients in self.kept.items():
                file[f"steps/{step}"] = torch.stack(gradients).numpy()

    @classmethod
    def load(cls, path: Path) -> "Gradients":
        """Read a file that ``save`` wrote."""
        with h5py.File(path) as file:
            layout = {name: tuple(int(n) for n in shape[:]) for name, shape in file["layout"].items()}
            kept = {int(step): list(torch.from_numpy(g[:])) for step, g in file["steps"].items()}
            return cls(layout, dict(sorted(kept.items())), float(file.attrs["accuracy"]))


def images_and_labels(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Normalised images, (n, 1, 28, 28), and labels of the part ``train`` or ``t10k``."""
    images = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    pixels = (images.reshape(-1, 1, 28, 28) / np.float32(255) - np.float32(0.286)) / np.float32(0.353)
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def train(folder: Path) -> Gradients:
    """Train a ResNet-8 with batches drawn by a fixed seed."""
    torch.manual_seed(0)
    model = ResNetConfig(blocks=1, width=16).build((1, 28, 28), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    layout = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    images, labels = images_and_labels(folder, "train")
    kept: dict[int, list[Tensor]] = {}
    for step in range(WATCHED[-1] + 1):
        chosen = torch.randint(labels.numel(), (RANKS * BATCH,))
        if step in WATCHED:
            kept[step] = []
            for part in chosen.split(BATCH):
                grads = torch.autograd.grad(
                    F.cross_entropy(model(images[part]), labels[part]), [p for p in model.parameters() if p.dim() > 1]
                )
                kept[step].append(torch.cat([g.reshape(-1) for g in grads]))
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen[:64]]), labels[chosen[:64]]).backward()
        optimizer.step()
    model.eval()
    images, labels = images_and_labels(folder, "t10k")
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return Gradients(layout, kept, float((found == labels).float().mean()))


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
    parser.add_argument("--gradients", type=Path, help="HDF5 file to keep the gradients in, or to take them from")
    parser.add_argument("--out", help="HDF5 file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = arguments.gradients is not None and arguments.gradients.exists()
    trained = Gradients.load(arguments.gradients) if found else train(arguments.data)
    if arguments.gradients is not None and not found:
        trained.save(arguments.gradients)
    layout, kept = trained.layout, trained.kept
    dense = sum(prod(shape) for shape in layout.values()) * 4 / 1e6
    print(f"ResNet-8, {dense:.3f} MB of matrices, test accuracy {trained.accuracy:.3f} after {WATCHED[-1]} steps\n")
    print("| method | r | MB sent | relative error of the mean | encode and decode, ms |\n|---|---|---|---|---|")
    results = []
    for rank in (1, 2, 4):
        results += [powersgd(layout, kept, rank, warm=False), powersgd(layout, kept, rank, warm=True)]
        results += [by_codec(layout, kept, rank, method) for method in ("ATOMO-SVD", "ATOMO entries", "top-k")]
        for x in results[-5:]:
            print(f"| {x.method} | {x.rank} | {x.megabytes:.3f} | {x.error:.2f} | {x.time_ms:.1f} |", flush=True)
    if arguments.out:
        with h5py.File(arguments.out, "w") as file:
            file.attrs["dense_megabytes"], file.attrs["accuracy"] = dense, trained.accuracy
            for field in ("method", "rank", "megabytes", "error", "time_ms"):
                file[field] = [getattr(result, field) for result in results]


if __name__ == "__main__":
    main()
