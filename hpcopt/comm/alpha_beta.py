"""What collectives take, by the alpha-beta model: a message of n bytes takes ``alpha + n / B`` (Hockney 1994,
doi:10.1016/S0167-8191(06)80021-9; the collectives' terms as in Thakur et al. 2005, doi:10.1177/1094342005051521).

Two classes of links: inside a node, where every rank has its own, and between nodes, where the ranks of a node share
one. A round of messages takes as long as its slowest link; kernels (sums, codecs) are straight lines as well. Pure
functions of measured numbers (``hpcopt.comm.calibration``): nothing here communicates.

With one node and links without distinction the sums are the closed forms of docs/concepts/collectives.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpcopt.comm.ring import SEGMENT_BYTES
from hpcopt.comm.shared import slot_bytes
from hpcopt.comm.transport import SHARED_BYTES


@dataclass(frozen=True)
class Line:
    """Seconds of n bytes: ``start_s + n / bytes_per_s``."""

    start_s: float = 0.0
    bytes_per_s: float = float("inf")

    def __call__(self, nbytes: float) -> float:
        """Seconds."""
        return self.start_s + nbytes / self.bytes_per_s


def fit(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through measured times that is best in the squares of its relative errors; neither of its terms is
    below zero.
    """
    n, t = np.asarray(sizes_bytes, float), np.asarray(seconds, float)
    terms = np.stack([1 / t, n / t], axis=1)  # of start_s and of seconds a byte; the right side is 1
    start_s, per_byte = np.linalg.lstsq(terms, np.ones(len(t)), rcond=None)[0]
    if start_s < 0:
        start_s, per_byte = 0.0, terms[:, 1].sum() / np.square(terms[:, 1]).sum()
    elif per_byte < 0:
        start_s, per_byte = terms[:, 0].sum() / np.square(terms[:, 0]).sum(), 0.0
    return Line(float(start_s), float(1 / per_byte) if per_byte > 0 else float("inf"))


@dataclass(frozen=True)
class Machine:
    """What was measured of the ranks, their links and their memory.

    Attributes:
        nodes: node of every rank.
        inside: between two ranks of one node, with all ranks of it at it.
        between: between two nodes, with one rank of each at it.
        reduce: adding so many bytes of float32 to as many, on all ranks at once.
        native: sizes in bytes, rising, and the seconds of the transport's own all-reduce of float32.
    """

    nodes: tuple[int, ...]
    inside: Line
    between: Line
    reduce: Line
    native: tuple[tuple[float, float], ...]

    @property
    def size(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True)
class CodecCost:
    """A codec's kernels, on all ranks at once, by float32 bytes; and float32 bytes by byte of payload."""

    encode: Line
    decode: Line
    ratio: float


def native_s(machine: Machine, nbytes: float) -> float:
    """The transport's own all-reduce: straight between measured sizes, and beyond the longest in proportion."""
    sizes, seconds = zip(*machine.native, strict=True)
    longest_bytes, longest_s = machine.native[-1]
    return float(np.interp(nbytes, sizes, seconds)) if nbytes <= longest_bytes else longest_s * nbytes / longest_bytes


def ring_s(machine: Machine, nbytes: float, codec: CodecCost | None = None) -> float:
    """``hpcopt.comm.ring.all_reduce``: ``2 (P - 1) (alpha + n / (P B)) + (P - 1) / P n / gamma``, each segment a
    message.

    Args:
        codec: of the values under way, if they are shorter.
    """
    size, chunk = machine.size, nbytes / machine.size
    segments = max(1, -(-int(chunk) // SEGMENT_BYTES))
    ratio = codec.ratio if codec else 1.0
    hop_s = segments * _shift_s(machine, 1, chunk / ratio / segments)
    casts_s = (size - 1) * (codec.encode(chunk) + codec.decode(chunk)) if codec else 0.0
    return (size - 1) * (2 * hop_s + machine.reduce(chunk)) + casts_s


def long_s(machine: Machine, nbytes: float) -> float:
    """``hpcopt.comm.dense.long``: by way of memory on one node, else around the ring."""
    return shared_s(machine, nbytes) if machine.size > 1 and max(machine.nodes) == 0 else ring_s(machine, nbytes)


def shared_s(machine: Machine, nbytes: float) -> float:
    """``hpcopt.comm.shared.all_reduce``: ``(s + 1) alpha + (3 (P - 1) / P + 1 / P) n / gamma``. A copy is reckoned to
    take as long as a sum, and a meeting the latency of a message.
    """
    size, chunk = machine.size, nbytes / machine.size
    meetings = 1 + max(1, -(-int(chunk) // slot_bytes(SHARED_BYTES, size)))
    sweeps_s = (3 * (size - 1) + 1) * chunk / machine.reduce.bytes_per_s
    return meetings * machine.inside.start_s + sweeps_s


def doubling_s(machine: Machine, nbytes: float) -> float:
    """``hpcopt.comm.doubling.all_reduce``: ``L (alpha + n / B + n / gamma)``, and beyond a power of two one sum and two
    messages more.
    """
    power = 1 << (machine.size.bit_length() - 1)
    ranks = np.arange(machine.size)
    total_s = 0.0
    if power < machine.size:
        lend = np.where(ranks >= power, ranks - power, -1)
        back = np.where(ranks + power < machine.size, ranks + power, -1)
        total_s += _round_s(machine, lend, nbytes) + machine.reduce(nbytes) + _round_s(machine, back, nbytes)
    distance = 1
    while distance < power:
        partners = np.where(ranks < power, ranks ^ distance, -1)
        total_s += _round_s(machine, partners, nbytes) + machine.reduce(nbytes)
        distance *= 2
    return total_s


def two_phase_s(machine: Machine, nbytes: float, codec: CodecCost) -> float:
    """``hpcopt.comm.two_phase.all_reduce``: ``2 (P - 1) (alpha + n / (P r B))``, P encodings and 2 P - 1 decodings of a
    shard.
    """
    size, shard = machine.size, nbytes / machine.size
    phase_s = sum(_shift_s(machine, distance, shard / codec.ratio) for distance in range(1, size))
    return 2 * phase_s + size * codec.encode(shard) + (2 * size - 1) * codec.decode(shard)


def two_phase_by_nodes_s(machine: Machine, nbytes: float, codec: CodecCost) -> float:
    """``Hierarchy.two_phase``: dense sums inside the nodes, then all lanes at once between them."""
    ranks = np.bincount(machine.nodes)
    nodes, lanes, widest = len(ranks), int(ranks.min()), int(ranks.max())
    chunk = nbytes / lanes
    shard = chunk / nodes
    node_s = (widest - 1) * (2 * machine.inside(chunk) + machine.reduce(chunk))
    phase_s = (nodes - 1) * machine.between(lanes * shard / codec.ratio)
    return node_s + 2 * phase_s + nodes * codec.encode(shard) + (2 * nodes - 1) * codec.decode(shard)


def _shift_s(machine: Machine, distance: int, nbytes: float) -> float:
    """A round in which every rank sends to the one so much further on."""
    return _seconds(machine, *_shift(machine.nodes, distance), nbytes)


@lru_cache(maxsize=4096)
def _shift(nodes: tuple[int, ...], distance: int) -> tuple[bool, int]:
    return _links(np.array(nodes), (np.arange(len(nodes)) + distance) % len(nodes))


def _round_s(machine: Machine, targets: NDArray[np.int64], nbytes: float) -> float:
    """A round in which every rank sends to its target; -1 is none."""
    return _seconds(machine, *_links(np.array(machine.nodes), targets), nbytes)


def _links(nodes: NDArray[np.int64], targets: NDArray[np.int64]) -> tuple[bool, int]:
    """Whether any message of a round stays on its node, and the most that leave one node."""
    sends = targets >= 0
    leaves = sends & (nodes[targets] != nodes)
    return bool((sends & ~leaves).any()), int(np.bincount(nodes[leaves]).max()) if leaves.any() else 0


def _seconds(machine: Machine, stays: bool, leave: int, nbytes: float) -> float:
    inside_s = machine.inside(nbytes) if stays else 0.0
    return max(inside_s, machine.between.start_s + leave * nbytes / machine.between.bytes_per_s if leave else 0.0)
