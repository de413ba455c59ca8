"""NCCL as a transport: collectives of tensors on GPUs go between the GPUs, by ``torch.distributed``'s process group.

NCCL has no messages as ours are: its sends wait for their receives, in one order on both sides, and a receiver must
know the length. So messages, and whatever lies in main memory, go by the transport that this one is made over, as does
the address where the ranks find each other. NCCL refuses two ranks on one GPU.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from hpcopt.comm.launch import gpu_of
from hpcopt.comm.process_group import ProcessGroupTransport, members_of
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import Op, Transport
from hpcopt.errors import LaunchError
from hpcopt.pinned import Pool


class Ranks(Protocol):
    """What is asked of a ``World``."""

    transport: Transport
    rank: int
    size: int
    local_rank: int
    hosts: list[str]

    @property
    def traffic(self) -> Traffic: ...
    def together(self) -> AbstractContextManager[None]: ...
    def gather_text(self, text: str) -> list[str]: ...
    def broadcast_integers(self, numbers: Sequence[int]) -> list[int]: ...


class NcclTransport(StagedTransport):
    """Another transport, with collectives of its own for what lies outside main memory."""

    def __init__(self, inner: Transport, group: ProcessGroupTransport, slots: Pool | None = None) -> None:
        """Both have the same ranks, and count in one place."""
        super().__init__(inner, slots=slots)
        self.name, self._group = "nccl", group

    def carries(self, x: Tensor) -> bool:
        return True

    def sums(self, x: Tensor) -> bool:
        return self._away(x) or self.inner.sums(x)

    def all_reduce(self, x: Tensor, op: Op = "sum") -> None:
        self._of(x).all_reduce(x, op)

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        self._of(x).broadcast(x, root)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        self._of(x).all_gather(x, out)

    def all_to_all(self, x: Tensor, out: Tensor) -> None:
        self._of(x).all_to_all(x, out)

    def split(self, color: int, key: int) -> "NcclTransport":
        members = members_of(self.inner, color, key)
        return NcclTransport(self.inner.split(color, key), self._group.among(members, self.traffic), self.slots)

    def duplicate(self) -> "NcclTransport":
        inner = self.inner.duplicate()
        return NcclTransport(inner, self._group.among(range(self.size), inner.traffic), self.slots)

    def close(self) -> None:
        """With all that was split or duplicated from it."""
        self.inner.barrier()
        dist.destroy_process_group()
        self.inner.close()

    def _of(self, x: Tensor) -> Transport:
        return self._group if self._away(x) else self.inner


def over_nccl(world: Ranks) -> NcclTransport:
    """NCCL between the ranks of a world, each with a GPU of its own. Collective.

    Raises:
        LaunchError: on all ranks, in a sentence: torch has no NCCL, or a rank sees no GPU, or shares one.
    """
    with world.together():
        card = _card(world)
    cards = world.gather_text(card)
    shared = [rank for rank, theirs in enumerate(cards) if theirs in cards[:rank]]
    if shared:
        raise _refusal(f"rank {shared[0]} has the GPU of another rank").everywhere()
    return NcclTransport(world.transport, joined(world, "nccl"))


def beside(own: ProcessGroupTransport, device: torch.device) -> Transport:
    """The ranks of somebody's process group, by groups of our own, for tensors on a device: with NCCL as here, with
    gloo by way of main memory. Collective.
    """
    if own.backend == "nccl":
        inner = own.among(range(own.size), backend="gloo")
        return NcclTransport(inner, own.among(range(own.size), inner.traffic))
    again = own.duplicate()
    return again if device.type == "cpu" else StagedTransport(again)


def _card(world: Ranks) -> str:
    """Take this rank's GPU, and give what no other has for a name."""
    if not dist.is_nccl_available():
        raise _refusal(f"torch {torch.__version__} was built without it")
    gpu = gpu_of(world.local_rank, torch.cuda.device_count())
    if gpu is None:
        raise _refusal("no GPU is visible")
    torch.cuda.set_device(gpu)
    return f"{world.hosts[world.rank]} {torch.cuda.get_device_properties(gpu).uuid}"


def _refusal(reason: str) -> LaunchError:
    return LaunchError(f'[run] backend = "nccl" cannot be used: {reason}; use backend = "mpi"')


def joined(world: Ranks, backend: str) -> ProcessGroupTransport:
    """A process group of torch's over a world's ranks, which find each other by way of rank 0's host. Collective.

    Raises:
        LaunchError: on all ranks: there is a process group already, or they cannot reach that host.
    """
    store: Any = None
    port = 0
    for opens in (True, False):  # rank 0 first: its port is what the others look for
        with world.together():
            if opens == (world.rank == 0):
                store = _store(world, port)
        port = world.broadcast_integers([0 if store is None else store.port])[0]
    with world.together():
        try:
            dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
        except (RuntimeError, ValueError) as error:
            raise LaunchError(f"{backend} cannot join the ranks: {_first_line(error)}") from error
    return ProcessGroupTransport(None, world.traffic)


def _store(world: Ranks, port: int) -> Any:
    if dist.is_initialized():
        raise LaunchError("torch.distributed has a process group already: make none beside [run] backend")
    host, first = world.hosts[0], world.rank == 0
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            host, port, world.size, is_master=first, wait_for_workers=False
        )
    except RuntimeError as error:
        raise LaunchError(f"rank {world.rank} cannot reach {host}, where ranks meet: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
