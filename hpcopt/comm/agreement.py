"""Ranks that would run different collectives find out before they hang in them."""

import torch

from hpcopt.comm.transport import Transport
from hpcopt.errors import PeerError

TEXT_BYTES = 240  # of a description that travels


def require_same_call(transport: Transport, what: str) -> None:
    """Check that every rank is about to do the same: operation, size, dtype, all in one text. Collective: over the
    transport's ranks; one all-gather of ``TEXT_BYTES`` a rank.

    Raises:
        PeerError: on all ranks; the message says who would do what.
    """
    encoded = what.encode()[:TEXT_BYTES]
    mine = torch.frombuffer(bytearray(encoded.ljust(TEXT_BYTES)), dtype=torch.uint8)
    rows = torch.empty(transport.size, TEXT_BYTES, dtype=torch.uint8)
    transport.all_gather(mine, rows)
    if bool((rows == rows[0]).all()):
        return
    wanted: dict[str, list[int]] = {}
    for rank, row in enumerate(rows):
        wanted.setdefault(bytes(row.tolist()).decode(errors="replace").rstrip(), []).append(rank)
    said = "; ".join(f"ranks {ranks} {text!r}" for text, ranks in wanted.items())
    raise PeerError(f"the ranks are about to run different collectives: {said}").everywhere()
