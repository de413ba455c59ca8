"""Clothes sorted by a small network: the step of one replica, run alone, on ranks in step, or by groups that do not
wait for each other.

    hpcopt prepare fashion-mnist --data-dir data
    python examples/replicas.py
    mpirun -n 4 python examples/replicas.py
    mpirun -n 5 python examples/replicas.py --sync-groups 2
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcopt import Replicator
from hpcopt.store.shards import Shards
from hpcopt.workloads.order import TrainOrder, share

Batch = tuple[Tensor, Tensor]


def build_model(pixels: int) -> nn.Module:
    """Logits, (n, 10), of images, (n, pixels)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 10))


def build_step(replicator: Replicator, model: nn.Module, lr: float, momentum: float, steps: int):
    """The step of one replica: it knows of the others in two places."""
    optimizer = replicator.wrap_optimizer(torch.optim.SGD(model.parameters(), lr, momentum))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)

    def step(batch: Batch) -> float:
        images, classes = batch
        loss = F.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return float(replicator.all_mean(loss.detach()))

    return step


def batches(replicator: Replicator, shards: Shards, batch: int, steps: int) -> Iterator[Batch]:
    """This replica's parts of its group's batches."""
    replicator.per_replica_batch_size(batch)
    order = TrainOrder(len(shards), batch, seed=replicator.sync_group)
    for step in range(steps):
        yield read(shards, order.indices(step, replicator.replica_id, replicator.num_replicas_in_sync))


def accuracy(replicator: Replicator, model: nn.Module, shards: Shards) -> float:
    """Of the test images; each replica looks at its share."""
    images, classes = read(
        shards, share(torch.arange(len(shards)).numpy(), replicator.replica_id, replicator.num_replicas_in_sync)
    )
    with torch.no_grad():
        right = (model(images).argmax(1) == classes).sum()
    return float(replicator.all_sum(right)) / len(shards)


def read(shards: Shards, rows) -> Batch:
    """Images, (n, pixels), of intensities in [0, 1], and classes, (n,)."""
    values = shards.rows(rows)
    images = torch.from_numpy(values["images"]).flatten(1) * shards.attributes["scale"]
    return images.float(), torch.from_numpy(values["labels"])


def main() -> None:
    """Train, and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"))
    parser.add_argument("--batch", type=int, default=120, help="over the replicas of a group")
    parser.add_argument("--images", type=int, default=300_000, help="to train on, over all groups")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.5)
    parser.add_argument("--sync-groups", type=int)
    args = parser.parse_args()
    replicator = Replicator(sync_groups=args.sync_groups)
    train, test = Shards(args.data, "train"), Shards(args.data, "test")
    model = build_model(pixels=train.rows([0])["images"].size)
    steps = args.images // (args.batch * replicator.num_sync_groups)
    step = build_step(replicator, model, args.lr, args.momentum, steps)
    losses = replicator.run(step, batches(replicator, train, args.batch, steps))
    right = accuracy(replicator, model, test)
    if replicator.world.rank == 0:
        print(f"{len(losses)} steps, last loss {losses[-1]:.4f}, test accuracy {right:.4f}")
        if replicator.staleness:
            print(f"staleness: {dict(sorted(replicator.staleness.items()))}")


if __name__ == "__main__":
    main()
