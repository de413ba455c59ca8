"""Checkpoints against plain files, torch.save and torch.distributed.checkpoint, in one run on the same ranks.

    mpirun -n 4 python benchmarks/checkpoint.py [--bytes 1e9] [--folder runs/benchmarks] [--out FILE.h5]

Every rank holds its part of a state of so many bytes, in float32 tensors as a transformer has them. A time is the
median over repeats of the slowest rank's, from a barrier; contenders take turns in random order. All writes end on disk
(fsync); before a read the file's pages are dropped from the cache. The last lines are of writing in the background: how
long training stands still, in the call and before the next update of the parameters, and how much slower a loop of
matrix products runs meanwhile.
"""

import argparse
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from mpi4py import MPI

from hpcopt.store import hdf5
from hpcopt.store.background import BackgroundWriter
from hpcopt.store.checkpoint import Checkpoints, rank_part

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.rank, COMM.size
State = dict[str, torch.Tensor]


def state_of(nbytes: float) -> State:
    """Tensors of 4 MB and, one for each, of 4 kB, until they hold so many bytes."""
    torch.manual_seed(RANK)
    count = max(1, round(nbytes / (4 << 20)))
    return {
        **{f"layers.{i}.weight": torch.randn(1024, 1024) for i in range(count)},
        **{f"layers.{i}.bias": torch.randn(1024) for i in range(count)},
    }


class Plain:
    """np.tofile and np.fromfile: the bytes and nothing else."""

    def write(self, folder: Path, state: State) -> None:
        with (folder / f"{RANK}.bin").open("wb") as file:
            for tensor in state.values():
                tensor.numpy().tofile(file)
            file.flush()
            os.fsync(file.fileno())

    def read(self, folder: Path, state: State) -> State:
        with (folder / f"{RANK}.bin").open("rb") as file:
            return {
                name: torch.from_numpy(np.fromfile(file, np.float32, t.numel())).view(t.shape)
                for name, t in state.items()
            }


class Ours:
    """Checkpoints: checksummed parts, manifest, commit."""

    def write(self, folder: Path, state: State) -> None:
        checkpoints = Checkpoints(folder, keep=1)
        if RANK == 0:
            checkpoints.begin(1)
        COMM.barrier()
        checkpoints.write_part(1, rank_part(RANK), state)
        COMM.barrier()
        if RANK == 0:
            checkpoints.commit(1, [rank_part(rank) for rank in range(RANKS)])

    def read(self, folder: Path, state: State) -> State:
        return Checkpoints(folder, keep=1).read_part(1, rank_part(RANK))


class TorchSave:
    """torch.save, a file a rank."""

    def write(self, folder: Path, state: State) -> None:
        torch.save(state, folder / f"{RANK}.pt")
        hdf5.sync(folder / f"{RANK}.pt")

    def read(self, folder: Path, state: State) -> State:
        return torch.load(folder / f"{RANK}.pt")


class Distributed:
    """torch.distributed.checkpoint with its file writer, which syncs by itself."""

    def write(self, folder: Path, state: State) -> None:
        mine = {f"{RANK}.{name}": tensor for name, tensor in state.items()}
        dcp.save(mine, storage_writer=dcp.FileSystemWriter(folder, sync_files=True))

    def read(self, folder: Path, state: State) -> State:
        mine = {f"{RANK}.{name}": torch.empty_like(tensor) for name, tensor in state.items()}
        dcp.load(mine, storage_reader=dcp.FileSystemReader(folder))
        return {name: mine[f"{RANK}.{name}"] for name in state}


CONTENDERS = {
    "tofile": Plain(),
    "hpcopt": Ours(),
    "torch.save": TorchSave(),
    "torch.distributed.checkpoint": Distributed(),
}


def slowest_s(work: Callable[[], object]) -> float:
    """Seconds of the slowest rank, from a barrier."""
    COMM.barrier()
    start = time.perf_counter()
    work()
    spent_s = time.perf_counter() - start
    everybody = COMM.Ibarrier()
    while not everybody.Test():
        time.sleep(1e-3)  # MPI would wait busily, on a core that another rank may need for its work
    return COMM.allreduce(spent_s, MPI.MAX)


def drop_pages(folder: Path) -> None:
    """Make the next read of a folder's files come from the disk."""
    COMM.barrier()
    if RANK == 0:
        for path in folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def fresh(folder: Path) -> None:
    COMM.barrier()
    if RANK == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    COMM.barrier()


def compare(folder: Path, state: State, repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds to write and to read, by contender."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for repeat in range(repeats):
        order = list(CONTENDERS.items())
        random.Random(repeat).shuffle(order)  # the same on all ranks; nobody always comes after the same one
        for name, contender in order:
            fresh(folder / name)
            write_s = slowest_s(lambda c=contender, n=name: c.write(folder / n, state))
            drop_pages(folder / name)
            found: list[State] = []
            read_s = slowest_s(lambda c=contender, n=name, f=found: f.append(c.read(folder / n, state)))
            assert all(torch.equal(found[0][key], tensor) for key, tensor in state.items())
            times[name].append((write_s, read_s))
            fresh(folder / name)
    return {name: tuple(map(statistics.median, zip(*each, strict=True))) for name, each in times.items()}


def in_background(folder: Path, state: State, repeats: int, step_s: float) -> tuple[float, float, float]:
    """Seconds that training stands still, seconds of the whole write, and the time of a product while over before:
    medians over repeats, the slowest rank's.

    A step is as many products of matrices as take step_s before; the state, which is a model's parameters and its
    optimizer's, changes after it.
    """
    a = torch.randn(512, 512)

    def products(until: Callable[[int], bool]) -> list[float]:
        times: list[float] = []
        while not until(len(times)):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return times

    end = time.perf_counter() + 1
    before_s = statistics.median(products(lambda _: time.perf_counter() > end))
    checkpoints = Checkpoints(folder / "background", keep=1)
    writer = BackgroundWriter(checkpoints)
    stall_s, whole_s, meanwhile_s = [], [], []
    for step in range(repeats + 1):  # the first allocates the copy
        if RANK == 0:
            checkpoints.begin(step)
        COMM.barrier()
        start = time.perf_counter()
        writer.write(step, {rank_part(RANK): state}, state.values())
        called = time.perf_counter()
        times = products(lambda done: done * before_s >= step_s)
        update = time.perf_counter()
        writer.copied()
        stall_s.append(COMM.allreduce(called - start + time.perf_counter() - update, MPI.MAX))
        times += products(lambda _: not writer.busy)
        meanwhile_s.append(statistics.median(times))
        writer.wait()
        COMM.barrier()
        whole_s.append(COMM.allreduce(time.perf_counter() - start, MPI.MAX))
        if RANK == 0:
            checkpoints.commit(step, [rank_part(rank) for rank in range(RANKS)])
    slower = COMM.allreduce(statistics.median(meanwhile_s[1:]) / before_s, MPI.MAX)
    return statistics.median(stall_s[1:]), statistics.median(whole_s[1:]), slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=1e9, help="of the whole state")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step-s", type=float, default=0.1, help="forward and backward pass, with nothing else to do")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/benchmarks/checkpoint"), help="on the disk to measure"
    )
    parser.add_argument("--out", type=Path, help="write the times to this HDF5 file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    dist.init_process_group("gloo", rank=RANK, world_size=RANKS)
    state = state_of(options.bytes / RANKS)
    total = COMM.allreduce(sum(t.nbytes for t in state.values()))
    times = compare(options.folder, state, options.repeats)
    stall_s, whole_s, slower = in_background(options.folder, state, options.repeats, options.step_s)
    if RANK == 0:
        print(
            f"{total / 1e9:.2f} GB on {RANKS} ranks, median of {options.repeats}; ratios are bandwidths over tofile's"
        )
        print(f"{'':30}{'write':>9}{'ratio':>7}{'read':>10}{'ratio':>7}")
        write0_s, read0_s = times["tofile"]
        for name, (write_s, read_s) in times.items():
            ratios = f"{write0_s / write_s:>7.2f}{read_s:>8.2f} s{read0_s / read_s:>7.2f}"
            print(f"{name:30}{write_s:>7.2f} s{ratios}")
        print(
            f"in the background, with steps of {options.step_s} s, training stands still for {stall_s:.3f} s, "
            f"{stall_s / whole_s:.1%} of {whole_s:.2f} s"
        )
        print(f"a matrix product meanwhile takes {slower:.2f} times as long")
        if options.out:
            with h5py.File(options.out, "w") as file:
                file.attrs.update(bytes=total, ranks=RANKS, stall_s=stall_s, background_s=whole_s)
                for name, pair in times.items():
                    file.create_dataset(name, data=np.array(pair)).attrs["columns"] = "write_s, read_s"
        shutil.rmtree(options.folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
