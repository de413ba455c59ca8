"""Measuring what the alpha-beta model needs, in two seconds or less: links inside nodes and between them, sums, codecs,
and the transport's own all-reduce.

Ranks measure together and keep the slowest one's time, so that all have the same numbers, and so that what ranks of a
node share (memory, a link) is shared while it is measured.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hpcopt import kernels
from hpcopt.comm import on_grid
from hpcopt.comm.alpha_beta import CodecCost, Line, Machine, fit
from hpcopt.comm.shards import grain
from hpcopt.comm.warm_up import compile_once
from hpcopt.comm.world import World
from hpcopt.compress import Bounded, Codec, CodecConfig

MESSAGES_BYTES = (64, 64 << 10, 512 << 10)
STREAM_BYTES, MOST_HOPS = 4 << 20, 64  # of messages in one run
RUNS = 4  # in a share of the budget, at least, about
SUMS_BYTES = (16 << 10, 256 << 10, 1 << 20)
ALL_REDUCES_BYTES = (256, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
MOST_REPEATS = 15
PARTS = 5  # of the budget: messages inside, messages between, sums, all-reduces, codecs
LARGEST = 8.0  # magnitude that is reckoned with beside Gaussian values of a variance of 1: gradients have longer tails
MEMORY_BYTES = 8 << 20  # more than a core's own cache: gradients are not in it either


def calibrate(world: World, budget_s: float = 2.0) -> Machine:
    """Measure links, sums and the transport's own all-reduce. Collective."""
    share_s = budget_s / PARTS
    nodes = tuple(list(dict.fromkeys(world.hosts)).index(host) for host in world.hosts)
    neighbours = [rank for rank, node in enumerate(nodes) if node == world.node]
    leaders = [nodes.index(node) for node in range(world.nodes)]
    inside = between = Line()
    if world.size > world.nodes:
        inside = _link(world, neighbours, share_s)
    if world.nodes > 1:
        between = _link(world, leaders if world.rank in leaders else [], share_s)
    return Machine(nodes, inside, between, _sums(world, share_s), _all_reduces(world, share_s))


def codec_cost(world: World, codec: CodecConfig, feedback: bool, n: int, budget_s: float) -> CodecCost:
    """Measure a codec's kernels on Gaussian values, as many as a shard of n has, and on a quarter of that. Collective.

    Args:
        feedback: encode with error feedback.
    """
    residuals = _Memory()
    if isinstance(codec, Bounded):
        compile_once(world, on_grid.warm)
        return _kernels_cost(world, *_on_grid(codec, world.size), on_grid.BLOCK, n, budget_s)
    assert isinstance(codec, Codec)
    compile_once(world, codec.warm)

    def encode(x: Tensor) -> Tensor:
        return codec.encode_feedback(x, residuals.next(x.numel()), seed=1) if feedback else codec.encode(x, seed=1)

    return _kernels_cost(world, encode, codec.decode_add, grain(codec), n, budget_s)


def _on_grid(codec: Bounded, size: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], object]]:
    """Encoding and decoding of integers. How many steps an absolute bound is depends on values that nobody has seen
    yet: it is taken for a millionth of the largest.
    """
    relative = codec if codec.of == "largest" else Bounded(bound=1e-6)
    grid = relative.grid(LARGEST, size)

    def encode(x: Tensor) -> Tensor:
        room = on_grid.room_for(x.numel(), grid.own_bits)
        return room[: kernels.grid.encode(x.numpy(), 1 / grid.step, room.numpy())]

    return encode, lambda payload, out: kernels.grid.decode(payload.numpy(), grid.step, out.numpy())


def _kernels_cost(
    world: World,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor, Tensor], object],
    whole: int,
    n: int,
    budget_s: float,
) -> CodecCost:
    """Of counts that are multiples of ``whole``. Collective."""
    longest = max(2, min(n // world.size, MEMORY_BYTES // 4) // whole) * whole
    counts = (max(1, longest // 4 // whole) * whole, longest)
    gradients, sums = _Memory(world.rank), _Memory()
    encode_s, decode_s, ratio = [], [], 1.0
    for count in counts:

        def pack(count: int = count) -> Tensor:
            return encode(gradients.next(count))

        payload = pack()

        def unpack(count: int = count, payload: Tensor = payload) -> None:
            decode(payload, sums.next(count))

        encode_s.append(seconds(world, pack, budget_s / 4))
        decode_s.append(seconds(world, unpack, budget_s / 4))
        ratio = 4 * count / max(1, payload.numel())
    smallest = world.all_reduce(torch.tensor([ratio], dtype=torch.float64), "min")
    sizes = [4 * count for count in counts]
    return CodecCost(fit(sizes, encode_s), fit(sizes, decode_s), float(smallest))


def seconds(world: World, run: Callable[[], object], budget_s: float) -> float:
    """Median over repeats of the slowest rank's time. Collective, also for a run that is not."""
    once(world, run)
    first_s = once(world, run)
    repeats = max(2, min(MOST_REPEATS, int(budget_s / first_s) - 2))
    return statistics.median([first_s, *(once(world, run) for _ in range(repeats))])


def once(world: World, run: Callable[[], object]) -> float:
    """Time of the slowest rank, from a barrier. Collective."""
    world.barrier()
    start_s = time.perf_counter()
    run()
    return float(world.all_reduce(torch.tensor([time.perf_counter() - start_s], dtype=torch.float64), "max"))


class _Memory:
    """Float32 values to work on, other ones at every call, so that they come from memory as gradients do."""

    def __init__(self, seed: int | None = None) -> None:
        """Gaussian values, or zeros."""
        count = MEMORY_BYTES // 4
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._values = torch.zeros(count) if generator is None else torch.randn(count, generator=generator)
        self._begin = 0

    def next(self, count: int) -> Tensor:
        if self._begin + count > len(self._values):
            self._begin = 0
        self._begin += count
        return self._values[self._begin - count : self._begin]


def _link(world: World, ring: Sequence[int], budget_s: float) -> Line:
    """Messages around some ranks, all of which send at once; the others only wait. Collective: over all ranks.

    As many follow each other as time allows, up to ``STREAM_BYTES``: the first ones only fill the buffers of a link.
    """
    transport, outgoing, incoming = world.transport, _Memory(), _Memory()
    times_s = []
    share_s = budget_s / len(MESSAGES_BYTES)
    for size_bytes in MESSAGES_BYTES:

        def shift(hops: int, count: int = size_bytes // 4) -> None:
            if len(ring) < 2:
                return
            place = ring.index(transport.rank)
            for _ in range(hops):
                receive = transport.receive(incoming.next(count), ring[place - 1])
                send = transport.send(outgoing.next(count), ring[(place + 1) % len(ring)])
                receive.wait()
                send.wait()

        once(world, partial(shift, 2))
        hop_s = once(world, partial(shift, 2)) / 2
        hops = max(2, min(MOST_HOPS, STREAM_BYTES // size_bytes, int(share_s / RUNS / hop_s)))
        times_s.append(seconds(world, partial(shift, hops), share_s) / hops)
    return fit(MESSAGES_BYTES, times_s)


def _sums(world: World, budget_s: float) -> Line:
    x, y = _Memory(), _Memory()
    times_s = []
    for size_bytes in SUMS_BYTES:

        def add(count: int = size_bytes // 4) -> None:
            target = x.next(count)
            torch.add(target, y.next(count), out=target)

        times_s.append(seconds(world, add, budget_s / len(SUMS_BYTES)))
    return fit(SUMS_BYTES, times_s)


def _all_reduces(world: World, budget_s: float) -> tuple[tuple[float, float], ...]:
    """As many sizes as the budget allows; a longer one is reckoned to take up to four times as much."""
    x = _Memory()
    measured: list[tuple[float, float]] = []
    left_s = budget_s
    for size_bytes in ALL_REDUCES_BYTES:
        if measured and 4 * 4 * measured[-1][1] > left_s:
            break

        def all_reduce(count: int = size_bytes // 4) -> None:
            world.transport.all_reduce(x.next(count))

        measured.append((float(size_bytes), seconds(world, all_reduce, budget_s / len(ALL_REDUCES_BYTES))))
        left_s -= 4 * measured[-1][1]
    return tuple(measured)
