"""What a rank knows of the others."""

import hashlib
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm import dense, ragged
from hpcopt.comm.agreement import gather_text, require_same_call
from hpcopt.comm.departure import watch_over
from hpcopt.comm.launch import check_launch, launch_from
from hpcopt.comm.loopback import LoopbackHub, LoopbackTransport
from hpcopt.comm.stall import CLOSE, STALL_S, Watch, unwatched
from hpcopt.comm.traffic import Traffic
from hpcopt.comm.transport import Op, Transport
from hpcopt.errors import HpcoptError, LaunchError, PeerError

Backend = Literal["mpi", "horovod", "nccl"]


class World:
    """The ranks of a job, where each runs, and the collectives between them. Passed to whoever needs it, never a
    global.

    Attributes:
        rank, size: this rank, and how many there are.
        hosts: host name of every rank.
        node, nodes: index of this rank's host among the job's hosts, and their number.
        local_rank, local_size: this rank among those of its host, and how many they are.
        traffic: what this rank has sent.
        ranks: number in the job of each of these ranks.
        watch: is told of every collective.
        debug: compare what the ranks are about to do before each collective.
        gpu_path: how tensors of a GPU travel, for a person; empty where there is none.
        closed: this rank has left in order.
    """

    def __init__(self, transport: Transport, debug: bool = False) -> None:
        """Collective: the ranks tell each other their host names."""
        self.transport, self.debug = transport, debug
        self.rank, self.size = transport.rank, transport.size
        self.ranks: Sequence[int] = range(self.size)
        self.watch: Watch = unwatched
        self.gpu_path = ""
        self.closed = False
        self._name, self._calls = "all ranks", 0
        self.hosts = self.gather_text(socket.gethostname())
        distinct = list(dict.fromkeys(self.hosts))
        neighbours = [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]
        self.node, self.nodes = distinct.index(self.hosts[self.rank]), len(distinct)
        self.local_rank, self.local_size = neighbours.index(self.rank), len(neighbours)

    @property
    def traffic(self) -> Traffic:
        return self.transport.traffic

    def all_reduce(self, x: Tensor, op: Op = "sum") -> Tensor:
        """Replace x, contiguous, by its reduction over all ranks, bit-equal on all of them. Collective.

        Short tensors go by recursive doubling, others around the ring, or by way of memory where all ranks share it;
        over a transport without messages, by its own all-reduce.
        """
        if self.size == 1:
            return x
        with self._collective(f"all_reduce ({op})", x):
            dense.all_reduce(self.transport, x, op)
        return x

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Add numbers up over all ranks, each by itself. Collective."""
        if self.size == 1:
            return list(map(float, numbers))
        values = torch.from_numpy(np.array(numbers, float))  # torch.tensor takes four times that
        return self.all_reduce(values).tolist()

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """Replace x, contiguous, on every rank by rank root's. Collective."""
        with self._collective(f"broadcast from rank {root}", x):
            self.transport.broadcast(x, root)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Give every rank's x, of one shape everywhere, as a tensor of shape (P, *x.shape). Collective."""
        out = x.new_empty(self.size, *x.shape)
        with self._collective("all_gather", x):
            self.transport.all_gather(x.contiguous(), out)
        return out

    def gather_bytes(self, mine: bytes) -> list[bytes]:
        """Give rank 0 what every rank has, however much; other ranks get nothing. Collective: 8 (P - 1) bytes of each
        rank, and what it has.
        """
        counts = self.all_gather(torch.tensor([len(mine)])).ravel().tolist()
        payload = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if mine else torch.empty(0, dtype=torch.uint8)
        with self._collective("gather at rank 0"):
            if self.transport.point_to_point:
                return [bytes(part.numpy()) for part in ragged.gather(self.transport, payload, counts)]
        padded = torch.zeros(max(counts), dtype=torch.uint8)
        padded[: len(mine)] = payload
        parts = self.all_gather(padded)
        return [bytes(part[:n].numpy()) for part, n in zip(parts, counts, strict=True)] if self.rank == 0 else []

    def gather_text(self, text: str) -> list[str]:
        """Give every rank's text, in rank order. Collective. For names and messages."""
        return gather_text(self.all_gather, text)

    def broadcast_integers(self, numbers: Sequence[int], root: int = 0) -> list[int]:
        """Give rank root's numbers, however many, on every rank. Collective."""
        count = self.broadcast(torch.tensor([len(numbers)]), root)
        mine = torch.tensor(numbers) if self.rank == root else torch.empty(int(count), dtype=torch.int64)
        return list(map(int, self.broadcast(mine.long(), root)))

    def barrier(self) -> None:
        """Return once every rank has come here. Collective."""
        with self._collective("barrier"):
            self.transport.barrier()

    def split(self, color: int, key: int = 0) -> "World":
        """Give the world of the ranks that named the same color, ordered by (key, rank). Collective."""
        with self._collective("split"):
            part = World(self.transport.split(color, key), self.debug)
        part.ranks = part.all_gather(torch.tensor([self.ranks[self.rank]])).ravel().tolist()
        part.watch, part._name = self.watch, f"group {color} of {self._name}, split {self._calls}"
        return part

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let a body that can fail on one rank alone fail on all: no rank then waits for one that is gone. Collective,
        at the end of the body.

        The body itself must not communicate.

        Raises:
            HpcoptError: on a rank whose body failed its own error; on the others one of the same kind, naming the first
            rank that failed.
        """
        failure: HpcoptError | None = None
        try:
            yield
        except HpcoptError as error:
            failure = error
        verdict = torch.tensor([self.size if failure is None else self.rank])
        self.all_reduce(verdict, "min")
        first = int(verdict)
        if first == self.size:
            return
        reports = self.gather_text("" if failure is None else f"{failure.exit_code} {failure}")
        if failure is None:
            exit_code, message = reports[first].split(" ", 1)
            failure = HpcoptError(f"rank {first} on {self.hosts[first]}: {message}")
            failure.exit_code = int(exit_code)
        raise failure.everywhere()

    def require_same(self, tensors: Sequence[Tensor], what: str) -> str:
        """Check that tensors are bit-equal on all ranks. Collective.

        Returns:
            Their digest, 16 hexadecimal digits.

        Raises:
            PeerError: on all ranks; the message names the ranks that differ from rank 0.
        """
        digest = hashlib.blake2b(digest_size=8)
        for x in tensors:
            digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        digests = self.gather_text(digest.hexdigest())
        different = [rank for rank, theirs in enumerate(digests) if theirs != digests[0]]
        if different:
            raise PeerError(f"{what} are not the same on all ranks: ranks {different} differ from rank 0").everywhere()
        return digests[0]

    def start_alike(self, parameters: Sequence[Tensor], broadcast: bool) -> None:
        """Let training start from the same parameters on all ranks: compare them, or take rank 0's. Collective.

        Raises:
            PeerError: on all ranks, without ``broadcast``: the message names the ranks that differ from rank 0.
        """
        if not broadcast:
            try:
                self.require_same(parameters, "the parameters at the start")
            except PeerError as error:
                remedy = "say broadcast=True to start from rank 0's, or build the model from one seed on all ranks"
                raise PeerError(f"{error}: {remedy}").everywhere() from None
            return
        with torch.no_grad():
            for p in parameters:
                p.copy_(self.broadcast(p.detach().clone(memory_format=torch.contiguous_format)))

    def threads_per_core(self, threads: int, machine: str) -> float:
        """How many of the ranks' threads a core has to run, on the machine where they are most. Collective.

        Args:
            threads: of this rank.
            machine: a name for the machine that this rank runs on, which may carry several hosts.
        """
        here = self.gather_text(machine).count(machine) * threads / (os.cpu_count() or 1)
        return float(self.all_reduce(torch.tensor([here], dtype=torch.float64), "max"))

    @contextmanager
    def _collective(self, operation: str, x: Tensor | None = None) -> Iterator[None]:
        """Around each collective: somebody may watch, and in debug mode ranks that would do different things say so."""
        self._calls += 1
        values = "" if x is None else f" of {tuple(x.shape)} {x.dtype}"
        what = f"call {self._calls} of {self._name}: {operation}{values}"
        with self.watch(what, self.ranks):
            if self.debug:
                require_same_call(self.transport, what)
            sent_bytes = self.traffic.sent_bytes
            yield
            self.traffic.dense_bytes += self.traffic.sent_bytes - sent_bytes  # nothing is compressed here

    def close(self) -> None:
        """Leave in order. Collective."""
        with self._collective(CLOSE):
            self.transport.close()
        self.closed = True


_NO_MPI = """\
MPI cannot be loaded ({}): load the module of the site's, or install one into this Python, with
  pip install mpich"""


def connect(backend: Backend = "mpi", debug: bool = False, stall_s: float = STALL_S) -> World:
    """Start the transport and find the other ranks. Collective: over all ranks of the job.

    From then on no rank leaves the others waiting, see ``hpcopt.comm.departure``.

    Args:
        debug: compare what the ranks are about to do before each collective.
        stall_s: seconds that a collective may wait before the ranks missing from it are named; the first call's count.

    Raises:
        LaunchError: the launcher meant this job to have another number of ranks; MPI or the backend is not installed.
    """
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # where it finds no device it says so on every rank, as an error
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(_NO_MPI.format(str(error).splitlines()[0])) from None

    from hpcopt.comm.mpi import MpiTransport

    check_launch(launch_from(), MPI.COMM_WORLD.size, MPI.Get_library_version())
    world = World(MpiTransport(), debug)
    if world.rank == 0 and not world.transport.threaded:
        warnings.warn(
            "MPI was started without MPI_THREAD_MULTIPLE, so gradients are exchanged after the backward pass, not "
            "beside it: unset MPI4PY_RC_THREAD_LEVEL and mpi4py.rc.thread_level, if this MPI has threads at all",
            stacklevel=2,
        )
    if backend == "horovod":
        world = _over_horovod(world, debug)
    elif backend == "nccl":
        from hpcopt.comm.nccl import over_nccl

        world.transport = over_nccl(world)
    if world.size > 1:
        watch_over(world, stall_s)
    return world


def _over_horovod(world: World, debug: bool) -> World:
    """The same ranks by way of Horovod. Collective."""
    with world.together():
        try:
            from hpcopt.comm.horovod import HorovodTransport
        except ImportError as error:
            raise LaunchError(
                f"Horovod cannot be loaded ({error}): install it, built for this MPI and torch, with\n"
                f"  HOROVOD_WITH_MPI=1 HOROVOD_WITH_PYTORCH=1 pip install --no-build-isolation horovod\n"
                '  or leave it: [run] backend = "mpi" needs none'
            ) from None
    world.close()
    return World(HorovodTransport(), debug)


def alone() -> World:
    """A world of one rank, without MPI."""
    return World(LoopbackTransport(LoopbackHub(1), 0))
