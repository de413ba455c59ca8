"""Ranks that would run different collectives find out before they hang in them."""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor

from hpcopt.comm.transport import Transport
from hpcopt.errors import PeerError

DIGEST_BYTES = 16

Gather = Callable[[Tensor], Tensor]  # (n,) of this rank -> (P, n) of all ranks


def require_same_call(transport: Transport, what: str) -> None:
    """Check that every rank is about to do the same: operation, size, dtype, all in one text. Collective: over the
    transport's ranks; one all-gather of ``DIGEST_BYTES`` a rank.

    Raises:
        PeerError: on all ranks; the message says who would do what.
    """
    said = differences(partial(_all_gather, transport), what)
    if said is not None:
        raise PeerError(f"the ranks are about to run different collectives: {said}").everywhere()


def differences(all_gather: Gather, what: str, details: Callable[[], str] = str) -> str | None:
    """Compare texts, and give who said which if they are not the same on all ranks. Collective: one all-gather of
    ``DIGEST_BYTES`` a rank; two more where the texts differ.

    Args:
        all_gather: over the ranks that should say the same.
        what: this rank's.
        details: what to tell of this rank after its text if texts differ; these may be unlike.
    """
    digest = bytearray(blake2b(what.encode(), digest_size=DIGEST_BYTES).digest())
    rows = all_gather(torch.frombuffer(digest, dtype=torch.uint8))
    if bool((rows == rows[0]).all()):
        return None
    said: dict[str, list[int]] = {}
    for rank, text in enumerate(gather_text(all_gather, what + details())):
        said.setdefault(text, []).append(rank)
    return "; ".join(f"ranks {ranks} {text!r}" for text, ranks in said.items())


def gather_text(all_gather: Gather, text: str) -> list[str]:
    """Give every rank's text, in rank order. Collective: two all-gathers."""
    encoded = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)[:-1]
    lengths = all_gather(torch.tensor([encoded.numel()]))
    padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
    padded[: encoded.numel()] = encoded
    return [
        bytes(row[: int(length)].tolist()).decode() for row, length in zip(all_gather(padded), lengths, strict=True)
    ]


def _all_gather(transport: Transport, x: Tensor) -> Tensor:
    out = x.new_empty(transport.size, *x.shape)
    transport.all_gather(x, out)
    return out
