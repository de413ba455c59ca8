"""What every transport promises, as functions that raise AssertionError; ``check_transport`` runs them all.

    from hpcopt.comm.loopback import run_ranks
    from hpcopt.testing.transport import check_failure, check_transport

    def test_mine():
        check_transport(MyTransport())  # on every rank that the launcher started, one or many

Each function is collective over the transport's ranks. One that raises on some of them leaves the others waiting,
unless the launcher ends these: threads of ``run_ranks`` are woken, processes need a test runner that aborts the job.

What a transport cannot do it refuses with UnsupportedError, by its name, on every rank; the rest is then asked of it.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm.traffic import Collective, least_bytes
from hpcopt.comm.transport import LINE_BYTES, Op, Transport
from hpcopt.comm.world import World
from hpcopt.errors import PeerError, UnsupportedError
from hpcopt.testing.messages import check_messages, neighbours
from hpcopt.testing.values import gaussian

NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64)
ANYTHING = (*NUMBERS, torch.uint8, torch.bool)
SHAPES: Sequence[tuple[int, ...]] = ((0,), (), (5,), (2, 3), (1000,))
OPS: Sequence[tuple[Op, Callable[[Tensor], Tensor]]] = (
    ("sum", lambda x: x.sum(0)),
    ("max", lambda x: x.amax(0)),
    ("min", lambda x: x.amin(0)),
)
LATE_S = 0.002  # that a rank comes late to a meeting, so that those who do not wait for it are seen


def check_transport(transport: Transport) -> None:
    """Run every check below but ``check_failure``, whose ranks must be threads.

    Raises:
        AssertionError: naming the transport, the promise and the ranks.
    """
    check_reductions(transport)
    check_moves(transport)
    check_barrier(transport)
    check_messages(transport)
    for seen, cut in ((transport.rank % 2, -transport.rank), (transport.rank, 0), (0, transport.rank)):
        check_split(transport, seen, cut)
    check_duplicate(transport)
    check_bytes(transport)
    check_shared_memory(transport)


def label(transport: Transport) -> str:
    """The transport and its ranks, for a message."""
    return f"{transport.name} on {transport.size} ranks"


def does(transport: Transport, what: str, call: Callable[[], Any]) -> bool:
    """Run a call; give False if it was refused, as it should be."""
    try:
        call()
    except UnsupportedError as refusal:
        assert transport.name in str(refusal), f"{label(transport)}: {what} is refused without the transport's name"
        return False
    return True


def check_reductions(transport: Transport) -> None:
    """Sums, maxima and minima of any shape are right, and bit-equal on all ranks; one rank's NaN reaches all."""
    who, size, rank = label(transport), transport.size, transport.rank
    for dtype in NUMBERS:
        for shape in SHAPES:
            everyones = torch.stack([_integers(shape, r, dtype) for r in range(size)])
            for op, reduce in OPS:
                x = everyones[rank].clone()
                what = f"{op} of {shape} {dtype}"
                if does(transport, what, partial(transport.all_reduce, x, op)):
                    assert torch.equal(x, reduce(everyones.double()).to(dtype)), f"{who}: {what} gives {x}"
    for n in (7, 100_003):
        x, total = gaussian(n, seed=rank), torch.stack([gaussian(n, seed=r) for r in range(size)]).double().sum(0)
        transport.all_reduce(x)
        out = x.new_empty(size, n)
        transport.all_gather(x, out)
        assert all(torch.equal(row, x) for row in out), f"{who}: the sum of {n} values has other bits on other ranks"
        assert torch.allclose(x.double(), total, rtol=1e-4, atol=1e-4), f"{who}: the sum of {n} values is another"
    x = torch.ones(3)
    if rank == size - 1:
        x[1] = torch.nan
    transport.all_reduce(x)
    assert x.isnan().tolist() == [False, True, False], f"{who}: with NaN in the middle of one rank's, the sum is {x}"


def check_moves(transport: Transport) -> None:
    """Broadcast, all-gather and all-to-all bring each value to its place, of any dtype and shape, to the bit."""
    who, size, rank = label(transport), transport.size, transport.rank
    for dtype in ANYTHING:
        for shape in SHAPES:
            what = f"of {shape} {dtype}"
            for root in range(size):
                x = _integers(shape, rank, dtype)
                if does(transport, f"broadcast {what}", partial(transport.broadcast, x, root)):
                    assert torch.equal(x, _integers(shape, root, dtype)), f"{who}: broadcast {what} from {root}: {x}"
            everyones = torch.stack([_integers(shape, r, dtype) for r in range(size)])
            x, out = everyones[rank].clone(), torch.empty_like(everyones)
            if does(transport, f"all_gather {what}", partial(transport.all_gather, x, out)):
                assert torch.equal(out, everyones), f"{who}: all_gather {what}: {out}"
            sent = torch.stack([_integers(shape, rank + size * to, dtype) for to in range(size)])
            wanted = torch.stack([_integers(shape, source + size * rank, dtype) for source in range(size)])
            x, out = sent.clone(), torch.empty_like(sent)
            if does(transport, f"all_to_all {what}", partial(transport.all_to_all, x, out)):
                assert torch.equal(out, wanted), f"{who}: all_to_all {what}: {out}"
                assert torch.equal(x, sent), f"{who}: all_to_all {what} changed its input"


def check_barrier(transport: Transport, meet: Callable[[], None] | None = None) -> None:
    """Nobody leaves a barrier before the last has come, as far as ranks of one host, who share a clock, can tell."""
    one_host = World(transport).nodes == 1
    for late in range(2 * transport.size):
        if late % transport.size == transport.rank:
            time.sleep(LATE_S)
        came_ns = time.monotonic_ns()
        (meet or transport.barrier)()
        everyones = torch.empty(transport.size, 2, dtype=torch.int64)
        transport.all_gather(torch.tensor([came_ns, time.monotonic_ns()]), everyones)
        last_came_ns, first_left_ns = everyones[:, 0].max(), everyones[:, 1].min()
        assert not one_host or last_came_ns <= first_left_ns, f"{label(transport)}: a rank did not wait for the last"


def check_split(transport: Transport, color: int, key: int) -> None:
    """A group has the ranks of one color in the order of (key, rank); its messages do not meet those of the whole, and
    its counts are theirs.
    """
    who, everyones = label(transport), torch.empty(transport.size, 2, dtype=torch.int64)
    transport.all_gather(torch.tensor([color, key]), everyones)
    claims = sorted((k, rank) for rank, (c, k) in enumerate(everyones.tolist()) if c == color)
    members, groups = [rank for _, rank in claims], []
    if not does(transport, "split", lambda: groups.append(transport.split(color, key))):
        return
    (group,) = groups
    found = torch.empty(group.size, 1, dtype=torch.int64)
    group.all_gather(torch.tensor([transport.rank]), found)
    assert found.ravel().tolist() == members, f"{who}: color {color} has ranks {members}, its group {found.tolist()}"
    assert group.rank == members.index(transport.rank), f"{who}: in its group a rank has another number"
    assert group.traffic is transport.traffic, f"{who}: a group must count where the whole does"
    if transport.point_to_point:
        _check_apart(transport, group, members)


def check_duplicate(transport: Transport) -> None:
    """A duplicate has the same ranks and counts of its own; no message of one meets the other, in other threads too."""
    who, made, size = label(transport), list[Transport](), transport.size
    if not does(transport, "duplicate", lambda: made.append(transport.duplicate())):
        return
    (other,) = made
    assert (other.rank, other.size) == (transport.rank, size), f"{who}: a duplicate has other ranks"
    assert other.traffic is not transport.traffic, f"{who}: a duplicate has counts of its own"
    if transport.point_to_point:
        _check_apart(transport, other, range(size))
    if not transport.threaded:
        return
    with ThreadPoolExecutor(1) as thread:
        twos, ones = torch.full((5000,), 2.0), torch.ones(5000)
        theirs = [thread.submit(_sum, other, twos) for _ in range(20)]
        ours = [_sum(transport, ones) for _ in range(20)]
        sums = [[float(x.max()) for x in (one, two.result())] for one, two in zip(ours, theirs, strict=True)]
    assert sums == [[size, 2 * size]] * 20, f"{who}: in two threads sums meet each other: {sums}"


def check_bytes(transport: Transport) -> None:
    """Of messages each byte that is sent is counted, where it is sent; of collectives at least what they must send; and
    nothing of one rank's.
    """
    who, size, rank = label(transport), transport.size, transport.rank
    x = torch.ones(size, 30)
    calls: dict[Collective, Callable[[], None]] = {
        "all_reduce": lambda: transport.all_reduce(x),
        "broadcast": lambda: transport.broadcast(x),
        "all_gather": lambda: transport.all_gather(x, x.new_empty(size, size, 30)),
        "all_to_all": lambda: transport.all_to_all(x, torch.empty_like(x)),
    }
    for name, call in calls.items():
        transport.traffic.lap()
        call()
        counted, least = transport.traffic.lap().sent_bytes, least_bytes(name, 120 * size, size, root=rank == 0)
        assert counted >= least, f"{who}: {name} of {120 * size} bytes is counted as {counted}, and sends {least}"
        assert size > 1 or not counted, f"{who}: {name} of one rank sends nothing, and {counted} bytes are counted"
    if transport.point_to_point:
        after, before = neighbours(transport)
        sent = transport.send(x[0, :7].bfloat16(), after)
        transport.receive(torch.empty(7, dtype=torch.bfloat16), before).wait()
        sent.wait()
        counted = transport.traffic.lap().sent_bytes
        assert counted == 14, f"{who}: of a message of 14 bytes {counted} are counted"


def check_shared_memory(transport: Transport) -> None:
    """Where there is memory that all can read, it is the same at every call, and what was written before a meeting can
    be read after it.
    """
    who, memory = label(transport), transport.shared_memory()
    if memory is None:
        return
    assert transport.shared_memory() is memory, f"{who}: shared memory is other memory at the next call"
    parts = memory.parts
    assert len(parts) == transport.size, f"{who}: {len(parts)} parts of shared memory"
    assert len({part.numel() for part in parts}) == 1, f"{who}: parts of shared memory have one length"
    assert all(part.data_ptr() % LINE_BYTES == 0 for part in parts), f"{who}: parts begin at lines of the cache"
    for turn in range(10):
        parts[transport.rank].fill_(turn + transport.rank)
        memory.meet()
        found = [int(part[-1]) for part in parts]
        assert found == [turn + rank for rank in range(transport.size)], f"{who}: after a meeting memory has {found}"
        memory.meet()
    check_barrier(transport, memory.meet)


def check_failure(run: Callable[[int, Callable[[Transport], Any]], Any]) -> None:
    """Where ranks are threads: one that fails, or ends the job, wakes those that wait for it, in groups too.

    Args:
        run: starts so many ranks of a program, as ``hpcopt.comm.loopback.run_ranks``, and raises the failure.
    """
    waits: dict[str, Callable[[Transport], Any]] = {
        "a barrier": lambda transport: transport.barrier(),
        "a receive": lambda transport: transport.receive(torch.empty(1), 1).wait(),
        "a sum": lambda transport: transport.all_reduce(torch.ones(3)),
    }
    ways: list[tuple[type[BaseException], Callable[[Transport], Any]]] = [
        (ZeroDivisionError, lambda transport: 1 // (transport.rank - 1)),
        (SystemExit, lambda transport: transport.abort(7)),
    ]
    for what, wait in waits.items():
        for kind, fail in ways:

            def program(transport: Transport, wait: Any = wait, fail: Any = fail) -> bool:
                group = transport.split(0, transport.rank)
                if transport.rank == 1:
                    fail(transport)
                try:
                    wait(group)
                except PeerError:
                    return True
                raise AssertionError("a rank went on without the one that failed")

            try:
                run(4, program)
            except kind:
                continue
            raise AssertionError(f"a rank's {kind.__name__} is lost while others wait in {what}")


def _check_apart(transport: Transport, other: Transport, members: Sequence[int]) -> None:
    """Messages between the same ranks, with the same tag: over ``transport``, and over ``other`` with these members."""
    after, before = neighbours(other)
    one, two = torch.empty(1), torch.empty(1)
    sends = [transport.send(torch.tensor([1.0]), members[after]), other.send(torch.tensor([2.0]), after)]
    other.receive(two, before).wait()
    transport.receive(one, members[before]).wait()
    for send in sends:
        send.wait()
    found = [float(one), float(two)]
    assert found == [1, 2], f"{label(transport)}: messages of a group or a duplicate meet those of the whole: {found}"


def _sum(transport: Transport, x: Tensor) -> Tensor:
    total = x.clone()
    transport.all_reduce(total)
    return total


def _integers(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Small numbers, whose sums over ranks every dtype has."""
    return torch.randint(16, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
