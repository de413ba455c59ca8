"""What calibration predicts of each collective, and what it takes.

    mpirun -n 4 python benchmarks/predictions.py [--sizes 4K,1M,8M]

Both in this run on these ranks: first the calibration of ``[exchange] name = "auto"``, then every algorithm on tensors
from memory that is in no cache. A time is the median over repeats of the slowest rank's, from a barrier.
"""

import argparse
import time
from collections.abc import Callable

import torch

from hpcopt.comm import dense, doubling, two_phase
from hpcopt.comm.calibration import calibrate, codec_cost, seconds
from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, Codec, Sign
from hpcopt.exchange.choices import predict

CODECS: tuple[Codec, ...] = (QSGD(bits=4), Sign())


def measure(world: World, n: int) -> dict[str, float]:
    """Seconds of every algorithm on n values."""
    transport = world.transport
    memory = torch.randn(max(n, 1 << 22), generator=torch.Generator().manual_seed(world.rank))
    begin = 0

    def values() -> torch.Tensor:
        nonlocal begin
        begin = begin + n if begin + 2 * n <= len(memory) else 0
        return memory[begin : begin + n]

    def two_phases(codec: Codec) -> Callable[[], object]:
        return lambda: two_phase.all_reduce(transport, values(), codec, sender_seed=world.rank, owner_seed=world.size)

    runs: dict[str, Callable[[], object]] = {
        "native": lambda: transport.all_reduce(values()),
        "doubling": lambda: doubling.all_reduce(transport, values()),
        "ring": lambda: dense.long(transport, values()),
        **{f"two_phase {codec.name}": two_phases(codec) for codec in CODECS},
    }
    return {name: seconds(world, run, 0.5) for name, run in runs.items()}


def size_of(text: str) -> int:
    return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="4K,64K,256K,1M,4M,8M", help="bytes of float32, as 4K or 16M")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = connect()
    start_s = time.perf_counter()
    machine = calibrate(world)
    links_s = time.perf_counter() - start_s
    longest = max(map(size_of, options.sizes.split(","))) // 4
    costs = {codec.name: codec_cost(world, codec, False, longest, 0.2) for codec in CODECS}
    if world.rank == 0:
        print(f"{world.size} ranks on {world.nodes} hosts; links, sums and all-reduces in {links_s:.2f} s, {machine}")
        print(f"{'':10}{'':18}{'predicted ms':>14}{'measured ms':>14}{'ratio':>8}")
    for text in options.sizes.split(","):
        nbytes = size_of(text)
        predicted = predict(machine, nbytes, None, False)
        predicted |= {
            f"two_phase {name}": predict(machine, nbytes, cost, False)["two_phase"] for name, cost in costs.items()
        }
        for name, took_s in measure(world, nbytes // 4).items():
            if world.rank == 0:
                expected_ms = 1e3 * predicted[name]
                print(f"{text:10}{name:18}{expected_ms:14.3f}{1e3 * took_s:14.3f}{1e3 * took_s / expected_ms:8.2f}")
    world.close()
    leave_exit_code(0)


if __name__ == "__main__":
    main()
