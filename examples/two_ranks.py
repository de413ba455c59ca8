"""One network on two ranks: its lower half lives on one, its upper half on the other.

python examples/two_ranks.py                 both halves here
mpirun -n 2 python examples/two_ranks.py     one each
mpirun -n 6 python examples/two_ranks.py     three replicas of two ranks, in step
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hpcopt import Replicator
from hpcopt.comm import connect


def bottom() -> nn.Module:
    """From pixels, (n, 64), to features, (n, 50)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU())


def top() -> nn.Module:
    """From features to logits, (n, 10)."""
    torch.manual_seed(1)
    return nn.Linear(50, 10)


def main() -> None:
    """Train on the handwritten digits, and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=96, help="over all replicas")
    args = parser.parse_args()

    world = connect()
    replicator = Replicator(world, devices_per_replica=2 if world.size % 2 == 0 else 1)
    lower, upper = replicator.logical_device(0), replicator.logical_device(1)
    front, back = lower.build(bottom), upper.build(top)  # a half that lives elsewhere has no parameters here
    mine = [*front.parameters(), *back.parameters()]
    optimizer = replicator.wrap_optimizer(torch.optim.SGD(mine, lr=0.2, momentum=0.9))

    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes)
    each = replicator.per_replica_batch_size(args.batch)

    def step(rows: Tensor) -> float:
        loss = F.cross_entropy(upper(back, lower(front, images[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(replicator.all_mean(loss.detach()))

    order = torch.Generator().manual_seed(0)
    draws = (torch.randint(1500, (args.batch,), generator=order) for _ in range(args.steps))
    losses = replicator.run(step, (rows.split(each)[replicator.replica_id] for rows in draws))
    with torch.no_grad():
        right = (upper(back, lower(front, images[1500:])).argmax(1) == labels[1500:]).float().mean()
    if world.rank == 0:
        print(f"{len(losses)} steps, last loss {losses[-1]:.4f}, test accuracy {float(right):.4f}")


if __name__ == "__main__":
    main()
