"""Wire accounting: what was sent, what a dense exchange would have sent, and where the seconds went."""

import time
from dataclasses import dataclass
from typing import Literal

from hpcopt.phases import PhaseClock

Collective = Literal["all_reduce", "broadcast", "all_gather", "all_to_all"]


@dataclass
class Traffic:
    """Counts of one rank. Point-to-point bytes are counted where the buffer meets the transport; of a collective that a
    library runs inside itself only the least that it must send is known, and counted."""

    sent_bytes: int = 0
    dense_bytes: int = 0  # what a dense float32 exchange of the same values would have sent
    encode_s: float = 0.0
    wire_s: float = 0.0
    decode_s: float = 0.0

    def encoding(self) -> "Stopwatch":
        """Count the body's seconds as making payloads."""
        return Stopwatch(self, "encode_s")

    def waiting(self) -> "Stopwatch":
        """Count the body's seconds as waiting for messages."""
        return Stopwatch(self, "wire_s")

    def decoding(self) -> "Stopwatch":
        """Count the body's seconds as reading and summing payloads."""
        return Stopwatch(self, "decode_s")

    def add(self, other: "Traffic") -> None:
        """Add another's counts to these."""
        self.sent_bytes += other.sent_bytes
        self.dense_bytes += other.dense_bytes
        self.encode_s += other.encode_s
        self.wire_s += other.wire_s
        self.decode_s += other.decode_s

    def lap(self) -> "Traffic":
        """Give the counts since the last lap, and start from zero."""
        counts = Traffic(self.sent_bytes, self.dense_bytes, self.encode_s, self.wire_s, self.decode_s)
        self.sent_bytes = self.dense_bytes = 0
        self.encode_s = self.wire_s = self.decode_s = 0.0
        return counts

    def hand_on(self, to: "Traffic", clock: PhaseClock) -> None:
        """Add the counts since the last lap to others, and their seconds to a step's phases; then start from zero."""
        counts = self.lap()
        to.add(counts)
        clock.add("encode", counts.encode_s)
        clock.add("comm", counts.wire_s)
        clock.add("decode", counts.decode_s)


class Stopwatch:
    """Adds a body's seconds to one of the counts. Not a generator: several go with every message."""

    __slots__ = ("_name", "_start_s", "_traffic")

    def __init__(self, traffic: Traffic, name: str) -> None:
        self._traffic, self._name = traffic, name

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, kind: object, error: object, where: object) -> None:
        elapsed_s = time.perf_counter() - self._start_s
        setattr(self._traffic, self._name, getattr(self._traffic, self._name) + elapsed_s)


def dense_all_reduce_bytes(payload_bytes: int, size: int) -> int:
    """Bytes that each of ``size`` ranks must at least send so that all have the sum: 2 (P - 1) / P of the payload."""
    return 2 * (size - 1) * payload_bytes // size


def least_bytes(collective: Collective, tensor_bytes: int, size: int, *, root: bool = False) -> int:
    """Bytes that one of ``size`` ranks must at least send in a collective of a library, each with a tensor of so many.

    Args:
        root: this rank is the one that others get the tensor of.
    """
    if collective == "all_reduce":
        return dense_all_reduce_bytes(tensor_bytes, size)
    if collective == "broadcast":
        return tensor_bytes if root and size > 1 else 0
    return (size - 1) * tensor_bytes // (size if collective == "all_to_all" else 1)
