"""What a step costs where memory is given back to the system after it, and where the process keeps it.

    python benchmarks/kept_memory.py

Each network in processes of its own, one thread: of a step, CPU time, the system's share of it and page
faults, medians and means; the most memory.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.kept_memory import keep_memory


def dense() -> tuple[nn.Module, Tensor]:
    """Of .9 million parameters, at 256 samples."""
    layers = [nn.Linear(784, 640), nn.Tanh(), nn.Linear(640, 640), nn.Tanh(), nn.Linear(640, 10)]
    return nn.Sequential(*layers), torch.randn(256, 784)


def convolutions() -> tuple[nn.Module, Tensor]:
    """Four layers of 48 and 96 channels, at 128 pictures of 32 x 32: the largest tensors have 25 MB."""
    layers: list[nn.Module] = []
    for before, channels in ((3, 48), (48, 48), (48, 96), (96, 96)):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        if (before, channels) == (48, 48):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)), torch.randn(128, 3, 32, 32)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"dense": dense, "convolutions": convolutions}


def measure(name: str, steps: int) -> dict[str, float]:
    """Steps of SGD with momentum, but for the first two: CPU ms, those of the system, page faults, MB at the most."""
    torch.set_num_threads(1)
    net, x = NETWORKS[name]()
    y = torch.randint(10, (len(x),))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    seconds, system, faults = list[float](), list[float](), list[int]()
    for _ in range(steps + 2):
        before = resource.getrusage(resource.RUSAGE_SELF)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        system.append(after.ru_stime - before.ru_stime)
        faults.append(after.ru_minflt - before.ru_minflt)
    return {
        "ms": 1e3 * statistics.median(seconds[2:]),
        "ms of the system's": 1e3 * statistics.mean(system[2:]),
        "page faults": statistics.median(faults[2:]),
        "MB at the most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Run all, each in a process of its own; or one, in this process."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, help="default: 40, or 6 of convolutions")
    p.add_argument("--one", nargs=2, metavar=("NETWORK", "HOW"), help=argparse.SUPPRESS)
    arguments = p.parse_args()
    if arguments.one:
        name, how = arguments.one
        if how == "kept":
            keep_memory()
        print(json.dumps(measure(name, arguments.steps or (40 if name == "dense" else 6))))
        return
    for name in NETWORKS:
        for how in ("given back", "kept"):
            command = [sys.executable, *sys.argv, "--one", name, how]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{name:12} {how:10}", "  ".join(f"{value:8.1f} {what}" for what, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
