"""Our collectives against MPI_Allreduce, Horovod, gloo and PowerSGD's hook, in one run on the same ranks.

    mpirun -n 4 python benchmarks/collectives.py [--sizes 4K,1M,16M,64M] [--out FILE.h5] [--wire-gbit 0.957]
    python benchmarks/collectives.py --table TWO.h5,FOUR.h5 OTHER.h5      medians of such files, in Markdown

Every contender sums the same float32 tensor. A time is the median over repeats of the slowest rank's, from a barrier;
contenders take turns, so that all see the same machine. A turn is one call that does not count, since it finds the
caches and threads as somebody else has left them, and three that do. Libraries with threads of their own come last, one
by one, each with what its threads make of MPI_Allreduce and of ours. "messages alone" sums nothing: it sends the bytes
that a ring must send to the next rank, and is what the MPI below can carry. With ``--wire-gbit``, the rate that iperf3
finds, the time that these bytes take at that rate is printed too.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import torch
import torch.distributed as dist
from torch import nn

from hpcopt.comm import doubling, on_grid, reductions, ring, two_phase, vote
from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport, wait_all
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, Bounded, Half, PowerSGD, Sign, TopK
from hpcopt.compress.finite import magnitude_bound
from hpcopt.models.resnet import ResNetConfig

Contender = Callable[[torch.Tensor], object]
BASELINE = "MPI_Allreduce"
TURN = 3  # calls that count


def ours(world: World) -> dict[str, Contender]:
    t = world.transport
    seeds = {"sender_seed": t.rank, "owner_seed": t.size}
    powersgd = PowerSGD(rank=4).build()

    def low_rank(x: torch.Tensor) -> object:
        columns = 1 << (x.numel().bit_length() // 2)
        layout = {f"{x.numel()} values": (x.numel() // columns, columns)}
        return reductions.all_reduce(t, x, powersgd, layout, seed=1)

    def bounded(x: torch.Tensor) -> object:
        largest = doubling.all_reduce(t, magnitude_bound(x), "max")
        return on_grid.all_reduce(t, x, Bounded(bound=1e-3).grid(float(largest), t.size))

    return {
        "messages alone": lambda x: messages(t, x),
        "ring bf16": lambda x: ring.all_reduce(t, x, wire=torch.bfloat16),
        "two-phase qsgd 4 bit": lambda x: two_phase.all_reduce(t, x, QSGD(bits=4), **seeds),
        "two-phase bf16": lambda x: two_phase.all_reduce(t, x, Half(), **seeds),
        "two-phase sign": lambda x: two_phase.all_reduce(t, x, Sign(), **seeds),
        "two-phase top 1 %": lambda x: two_phase.all_reduce(
            t, x, TopK(threshold="sampled"), **seeds, sender_residual=torch.zeros_like(x)
        ),
        "bounded 1e-3": bounded,
        "PowerSGD rank 4": low_rank,
        "vote": lambda x: vote.all_reduce(t, x),
    }


def messages(t: Transport, x: torch.Tensor) -> None:
    """As many bytes as a ring sends, in the same segments, all at once and without anything being summed."""
    whole_bytes = 4 * x.numel()
    for _ in range(2):
        sent = x[: dense_all_reduce_bytes(whole_bytes, t.size) // 8]
        landing = torch.empty_like(sent)
        requests = []
        for part, room in zip(sent.split(ring.SEGMENT_BYTES // 4), landing.split(ring.SEGMENT_BYTES // 4), strict=True):
            requests += [t.receive(room, (t.rank - 1) % t.size), t.send(part, (t.rank + 1) % t.size)]
        wait_all(requests)


@contextmanager
def gloo(world: World) -> Iterator[dict[str, Contender]]:
    os.environ.update(MASTER_ADDR=world.hosts[0], MASTER_PORT=os.environ.get("BENCH_PORT", "29511"))
    dist.init_process_group("gloo", rank=world.rank, world_size=world.size)
    yield {"gloo": dist.all_reduce, "torch PowerSGD hook": torch_powersgd()}
    dist.destroy_process_group()


@contextmanager
def horovod(world: World) -> Iterator[dict[str, Contender]]:
    import horovod.torch as hvd

    hvd.init()
    yield {"Horovod": lambda x: hvd.allreduce_(x, op=hvd.Sum, name=f"x{x.numel()}")}
    world.barrier()
    hvd.shutdown()


LIBRARIES = {"gloo": gloo, "horovod": horovod}


def torch_powersgd() -> Contender:
    """torch's own hook, on a bucket of one square-ish matrix."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2, warm_start=True)
    state.iter = 2

    class Bucket:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

        def buffer(self) -> torch.Tensor:
            return self.x

        def index(self) -> int:
            return 0

        def is_last(self) -> bool:
            return True

        def gradients(self) -> list[torch.Tensor]:
            columns = 1 << (self.x.numel().bit_length() // 2)
            return [self.x.view(-1, columns)]

    def run(x: torch.Tensor) -> object:
        if 0 in state.error_dict and state.error_dict[0].numel() != x.numel():
            state.error_dict.clear()
            state.p_memory_dict.clear()
            state.q_memory_dict.clear()
        return powerSGD_hook.powerSGD_hook(state, Bucket(x)).wait()

    return run


def values(kind: str, n: int, rank: int) -> torch.Tensor:
    """Shape (n,): Gaussian, or the gradient of a network at its start, as often as it takes."""
    torch.manual_seed(0)
    if kind == "resnet":
        model = ResNetConfig(blocks=1, width=64).build((1, 16, 16), 10)
    elif kind == "bert":
        model = nn.Sequential(nn.Embedding(30_522, 128), *(nn.TransformerEncoderLayer(128, 2, 512) for _ in range(2)))
        model.append(nn.Linear(128, 10))
    torch.manual_seed(1 + rank)
    if kind == "gaussian":
        return torch.randn(n)
    samples = torch.randn(32, 1, 16, 16) if kind == "resnet" else torch.randint(30_522, (32, 64))
    outputs = model(samples).reshape(32, -1, 10).mean(1)
    nn.functional.cross_entropy(outputs, torch.randint(10, (32,))).backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    return gradient.repeat(-(-n // len(gradient)))[:n].clone()


def measure(world: World, contenders: dict[str, Contender], x: torch.Tensor, budget_s: float) -> dict[str, list[float]]:
    """Seconds of each, repeat by repeat."""
    work = torch.empty_like(x)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start_s = time.perf_counter()
    while True:
        for name, run in contenders.items():
            for call in range(1 + TURN):
                work.copy_(x)
                world.barrier()
                begin_s = time.perf_counter()
                run(work)
                slowest = world.all_reduce(torch.tensor([time.perf_counter() - begin_s]), "max")
                if call:
                    times[name].append(float(slowest))
        late = torch.tensor([float(time.perf_counter() - start_s > budget_s)])
        turns = len(times[next(iter(times))]) // TURN
        if turns >= 2 and (float(world.all_reduce(late, "max")) or turns >= 20):
            return times


def size_of(text: str) -> int:
    return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="4K,64K,1M,16M,64M", help="bytes of float32, as 4K or 16M")
    parser.add_argument("--peers", default="gloo,horovod", help="libraries to compare with, beside MPI_Allreduce")
    parser.add_argument("--values", choices=("gaussian", "resnet", "bert"), default="gaussian", help="what is summed")
    parser.add_argument("--only", default="", help="names of ours, separated by commas")
    parser.add_argument("--budget-s", type=float, default=4.0, help="seconds for each size, about")
    parser.add_argument("--wire-gbit", type=float, help="rate of every link")
    parser.add_argument("--out", type=Path, help="HDF5 file for the times")
    parser.add_argument("--table", nargs="+", help="measure nothing; files in one cell are separated by commas")
    options = parser.parse_args()
    if options.table:
        print(markdown([group.split(",") for group in options.table], options.sizes.split(",")))
        return
    torch.set_num_threads(1)
    world = connect("mpi")
    sizes: list[str] = options.sizes.split(",")
    table: dict[str, dict[str, list[float]]] = {text: {} for text in sizes}
    dense: dict[str, Contender] = {BASELINE: world.transport.all_reduce, "ring": world.all_reduce}

    def compare(contenders: dict[str, Contender], wire_gbit: float | None = None) -> None:
        for text in sizes:
            x = values(options.values, size_of(text) // 4, world.rank)
            times = measure(world, contenders, x, options.budget_s)
            table[text] |= times
            if world.rank == 0:
                report(text, {BASELINE: table[text][BASELINE]} | times, world.size, wire_gbit)

    chosen = options.only.split(",") if options.only else list(ours(world))
    compare(dense | {name: run for name, run in ours(world).items() if name in chosen}, options.wire_gbit)
    for library in filter(None, options.peers.split(",")):
        with LIBRARIES[library](world) as contenders:
            compare(contenders | {f"{name} beside {library}": run for name, run in dense.items()})
    if world.rank == 0 and options.out:
        write(options.out, table, world)
    world.close()
    leave_exit_code(0)


def report(size: str, times: dict[str, list[float]], ranks: int, wire_gbit: float | None = None) -> None:
    """Medians, and the best of the repeats: on a busy machine the two tell apart what is ours and what is others'."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    bests = {name: min(values) for name, values in times.items()}
    repeats = sorted({len(values) for values in times.values()})
    print(f"\n{size}B of float32 on {ranks} ranks, {' or '.join(map(str, repeats))} repeats")
    print(f"{'':30}{'median ms':>12}{'x MPI_Allreduce':>18}{'best ms':>12}{'x MPI_Allreduce':>18}")
    for name in times:
        ratios = medians[BASELINE] / medians[name], bests[BASELINE] / bests[name]
        print(f"{name:30}{1e3 * medians[name]:12.3f}{ratios[0]:18.2f}{1e3 * bests[name]:12.3f}{ratios[1]:18.2f}")
    if wire_gbit:
        bound_s = 8 * dense_all_reduce_bytes(size_of(size), ranks) / (1e9 * wire_gbit)
        print(f"{'wire, float32':30}{1e3 * bound_s:12.3f}", end="")
        if "ring" in times:
            print(
                f"   the ring is at {bound_s / medians['ring']:.2f} of it, at best {bound_s / bests['ring']:.2f}",
                end="",
            )
        print(flush=True)


def write(path: Path, table: dict[str, dict[str, list[float]]], world: World) -> None:
    from mpi4py import MPI

    with h5py.File(path, "w") as file:
        file.attrs["ranks"], file.attrs["hosts"] = world.size, world.nodes
        file.attrs["mpi"] = MPI.Get_library_version().splitlines()[0].split(",")[0]
        for size, times in table.items():
            for name, values in times.items():
                file[f"{size}/{name}/time_s"] = values


def markdown(groups: list[list[str]], sizes: list[str]) -> str:
    """Milliseconds of every contender: a group's columns are the sizes, and a cell has one median for each of its
    files.
    """
    medians: dict[str, dict[tuple[str, str], float]] = {}
    for path in (path for group in groups for path in group):
        with h5py.File(path) as file:
            for size in sizes:
                for name, times in file[size].items():
                    medians.setdefault(name, {})[path, size] = statistics.median(times["time_s"][:])
    columns = [(group, size) for group in groups for size in sizes]
    lines = [f"| | {' | '.join(size for _, size in columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, found in medians.items():
        cells = [
            " / ".join(f"{1e3 * found[path, size]:.3g}" if (path, size) in found else "-" for path in group)
            for group, size in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
