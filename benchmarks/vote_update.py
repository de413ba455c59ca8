"""From a vote's outcome to new parameters: unpacked into +1 and -1 and then stepped, or in one sweep from the bits.

    mpirun -n 2 python benchmarks/vote_update.py [--mb 64] [--repeats 15] [--out FILE.h5]

Every rank holds parameters of so many MB. A time is the median over repeats of the slowest rank's, from a barrier; the
ways take turns. "step" is what follows the vote; "vote and step" has the vote itself before it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import torch
from torch import nn

from hpcopt.comm import vote
from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.world import World, connect
from hpcopt.optim.signum import Signum

LR, DECAY = 1e-3, 5e-4


def ways(world: World, n: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    momentum = torch.randn(n, generator=torch.Generator().manual_seed(world.rank))
    words = torch.empty(vote.ballot_words(n), dtype=torch.int64)
    vote.pack(momentum, words)
    plain, packed = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))
    plain.grad = torch.empty(n)
    unfused = Signum([plain], LR, momentum=0.0, weight_decay=DECAY)
    fused = Signum([packed], LR, momentum=0.0, weight_decay=DECAY, outcome=lambda _p: words)

    def signs() -> None:
        vote.unpack(words, plain.grad)
        unfused.step()

    def vote_and_signs() -> None:
        plain.grad.copy_(momentum)
        vote.all_reduce(world.transport, plain.grad)
        unfused.step()

    def vote_and_bits() -> None:
        for _ in vote.vote(world.transport, momentum, words):
            pass
        fused.step()

    return {
        "step from +1 and -1": signs,
        "step from bits": fused.step,
        "vote and step from +1 and -1": vote_and_signs,
        "vote and step from bits": vote_and_bits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=64, help="MiB of float32 parameters")
    parser.add_argument("--repeats", type=int, default=15, help="of each way")
    parser.add_argument("--out", type=Path, help="HDF5 file for the times")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = connect()
    runs = ways(world, int(options.mb * (1 << 20)) // 4)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats + 1):
        for name, run in runs.items():
            world.barrier()
            start_s = time.perf_counter()
            run()
            times[name].append(float(world.all_reduce(torch.tensor([time.perf_counter() - start_s]), "max")))
    if world.rank == 0:
        medians_ms = {name: 1e3 * statistics.median(values[1:]) for name, values in times.items()}
        print(f"{options.mb:g} MiB of float32 on {world.size} ranks, medians of {options.repeats}")
        slow_ms = 0.0
        for place, (name, ms) in enumerate(medians_ms.items()):
            slow_ms = ms if place % 2 == 0 else slow_ms
            print(f"{name:32}{ms:10.3f} ms{slow_ms / ms:8.2f} x")
        if options.out:
            with h5py.File(options.out, "w") as file:
                file.attrs["ranks"], file.attrs["mib"] = world.size, options.mb
                for name, values in times.items():
                    file[name] = values[1:]
    world.close()
    leave_exit_code(0)


if __name__ == "__main__":
    main()
