"""Wire accounting: what was sent, what a dense exchange would have sent, and where the seconds went."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass
class Traffic:
    """Counts of one rank. Point-to-point bytes are counted where the buffer meets the transport; of a collective that a
    library runs inside itself only the least that it must send is known, and counted."""

    sent_bytes: int = 0
    dense_bytes: int = 0  # what a dense float32 exchange of the same values would have sent
    encode_s: float = 0.0
    wire_s: float = 0.0
    decode_s: float = 0.0

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Count the body's seconds as making payloads."""
        start_s = time.perf_counter()
        yield
        self.encode_s += time.perf_counter() - start_s

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the body's seconds as waiting for messages."""
        start_s = time.perf_counter()
        yield
        self.wire_s += time.perf_counter() - start_s

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Count the body's seconds as reading and summing payloads."""
        start_s = time.perf_counter()
        yield
        self.decode_s += time.perf_counter() - start_s

    def add(self, other: "Traffic") -> None:
        """Add another's counts to these."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)

    def lap(self) -> "Traffic":
        """Give the counts since the last lap, and start from zero."""
        counts = Traffic(**asdict(self))
        self.__init__()  # type: ignore[misc]
        return counts


def dense_all_reduce_bytes(payload_bytes: int, size: int) -> int:
    """Bytes that each of ``size`` ranks must at least send so that all have the sum: 2 (P - 1) / P of the payload."""
    return 2 * (size - 1) * payload_bytes // size
