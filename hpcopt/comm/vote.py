"""Majority vote on signs: one bit a value each way (Bernstein et al. 2019, arXiv:1810.05291).

Every rank's ballot is one bit a value, packed in words (``hpcopt.kernels.bits``). The elections are sharded over the
ranks: each rank receives the others' ballots for its own stretch, counts 64 elections at a time with bitwise adders,
and sends the outcomes to all. There is no server, and the result is bit-equal on all ranks.

**The rule**: an outcome is minus if more than half of the votes (or of their weight) are minus, else plus. So a tie is
plus. Zeros of either sign and NaN vote plus.

Within nodes (``Hierarchy``) ballots are counted and the counts, not the nodes' majorities, travel between nodes: the
outcome is that of the flat vote, bit for bit.

Cost with latency alpha and bandwidth B, for n values, with rates to pack, count and unpack that a memory copy bounds:
``2 (P - 1) alpha + 2 (P - 1) / P n / (8 B)``.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt import kernels
from hpcopt.comm.shards import shards
from hpcopt.comm.transport import Request, Transport, wait_all
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut

WORD = 64  # elections in a word
GRAIN = 8  # words that the counting loops take at once


def all_reduce(transport: Transport, x: Tensor, weights: Sequence[int] | None = None) -> Tensor:
    """Replace x, shape (n,), float32, contiguous, by the majority's signs, +1 and -1. Collective: over the transport's
    ranks. With one rank they are x's own signs.

    Returns:
        x itself.
    """
    words = torch.empty(ballot_words(x.numel()), dtype=torch.int64)
    for where in vote(transport, x, words, weights):
        with transport.traffic.decoding():
            unpack(words[where], x[WORD * where.start : WORD * where.stop])
    return x


def vote(
    transport: Transport,
    x: Tensor,
    words: Tensor,
    weights: Sequence[int] | None = None,
    see: Callable[[Tensor], object] | None = None,
) -> Iterator[slice]:
    """Vote on the signs of x, shape (n,), float32, contiguous, into words, shape (ballot_words(n),), int64; give each
    stretch of words once it is decided, for a caller that applies it while others are on the wire.

    Collective: over the transport's ranks, if iterated to the end.

    Args:
        weights: votes of each rank, integers of at least 0, the same on all ranks; by default one each.
        see: is shown all ranks' ballots in the elections that this rank decides, shape (P, words), int64.
    """

    yield from elect(transport, ballots_of(x), words, weights, see)


def elect(
    transport: Transport,
    pack_stretch: Callable[[slice, Tensor], object],
    words: Tensor,
    weights: Sequence[int] | None = None,
    see: Callable[[Tensor], object] | None = None,
) -> Iterator[slice]:
    """As ``vote``, with ballots from elsewhere.

    Args:
        pack_stretch: fills a stretch of this rank's ballot, as ``pack`` would; asked for each stretch once.
    """
    size, rank, traffic = transport.size, transport.rank, transport.traffic
    stretches = shards(words.numel(), size, GRAIN)
    others = [(rank + distance) % size for distance in range(1, size)]
    sources = [(rank - distance) % size for distance in range(1, size)]
    mine = stretches[rank]
    ballot = torch.empty_like(words)
    votes = words.new_empty(size, mine.stop - mine.start)
    receives = [transport.receive(votes[source], source) for source in sources]
    sends: list[Request] = []
    for owner in others:  # each part is packed while the one before it is on the wire
        with traffic.encoding():
            pack_stretch(stretches[owner], ballot[stretches[owner]])
        sends.append(transport.send(ballot[stretches[owner]], owner))
    with traffic.encoding():
        pack_stretch(mine, ballot[mine])
        votes[rank] = ballot[mine]
    with traffic.waiting():
        wait_all(receives)
    with traffic.decoding():
        count(votes, weights, words[mine])
    outcomes = [transport.receive(words[stretches[source]], source) for source in sources]
    sends += [transport.send(words[mine], other) for other in others]
    if see is not None:
        with traffic.decoding():
            see(votes)
    yield mine
    for source, outcome in zip(sources, outcomes, strict=True):
        with traffic.waiting():
            outcome.wait()
        yield stretches[source]
    with traffic.waiting():
        wait_all(sends)


def elect_together(transport: Transport, votes: Tensor, weights: Sequence[int]) -> Tensor:
    """Decide elections in which a rank has several votes: their counts travel, and the outcome is that of the flat
    vote, bit for bit. Collective: over the transport's ranks.

    Args:
        votes: of this rank, shape (voters, words), int64; ranks may have unlike numbers of them.
        weights: of these votes, integers of at least 0.

    Returns:
        The outcome, shape (words,).
    """
    size, rank = transport.size, transport.rank
    totals = torch.empty(size, 1, dtype=torch.int64)
    transport.all_gather(torch.tensor([sum(weights)]), totals)
    bits = [int(total).bit_length() for total in totals]
    stretches, others = shards(votes.shape[1], size, GRAIN), [other for other in range(size) if other != rank]
    mine = stretches[rank]
    landing = [votes.new_empty(b, mine.stop - mine.start) for b in bits]
    receives = [transport.receive(landing[other], other) for other in others]

    planes = votes.new_empty(bits[rank], votes.shape[1])
    kernels.ballots.count(unsigned(votes), np.array(weights, np.int64), unsigned(planes))
    parts = [planes[:, stretch].contiguous() for stretch in stretches]
    sends = [transport.send(parts[other], other) for other in others]
    landing[rank] = parts[rank]
    wait_all(receives)
    total = votes.new_zeros(int(totals.sum()).bit_length(), mine.stop - mine.start)
    for part in landing:
        kernels.ballots.add_counts(unsigned(total), unsigned(part))
    outcome = votes.new_empty(votes.shape[1])
    kernels.ballots.exceeds(unsigned(total), int(totals.sum()) // 2, unsigned(outcome[mine]))
    wait_all(sends)

    receives = [transport.receive(outcome[stretches[other]], other) for other in others]
    sends = [transport.send(outcome[mine], other) for other in others]
    wait_all(receives)
    wait_all(sends)
    return outcome


def planned_bytes_together(words: int, weights: Sequence[int], rank: int) -> int:
    """The most bytes that a rank sends in ``elect_together`` of so many words, with all ranks' sums of weights."""
    stretch = shards(words, len(weights), GRAIN)[rank]
    own: int = stretch.stop - stretch.start
    return 8 * (weights[rank].bit_length() * (words - own) + (len(weights) - 1) * (own + 1))


def warm_together() -> None:
    """Compile the loops of ``elect_together``, or load them from the cache."""
    words = np.zeros((1, GRAIN), np.uint64)
    kernels.ballots.count(words, np.ones(1, np.int64), words.copy())
    kernels.ballots.add_counts(words, words.copy())
    kernels.ballots.exceeds(words, 0, words[0].copy())


def ballots_of(x: Tensor) -> Callable[[slice, Tensor], None]:
    """What packs stretches of the ballot on x, shape (n,), float32, as ``elect`` asks for them."""

    def pack_stretch(stretch: slice, ballot: Tensor) -> None:
        pack(x[WORD * stretch.start : WORD * stretch.stop], ballot)

    return pack_stretch


def count(votes: Tensor, weights: Sequence[int] | None, outcome: Tensor) -> None:
    """Decide elections in this process: votes, shape (voters, words), outcome, shape (words,), int64."""
    if weights is None:
        kernels.ballots.majority(unsigned(votes), unsigned(outcome))
    else:
        kernels.ballots.weighted_majority(unsigned(votes), np.array(weights, np.int64), unsigned(outcome))


def pack(x: Tensor, words: Tensor) -> None:
    """Fill a ballot, shape (ballot_words(n),), int64, from x, shape (n,), float32, where they are."""
    if not x.is_cpu:
        worst = torch.zeros(1, dtype=torch.int32, device=x.device)  # whatever is not finite votes, too
        cuda.bits.pack(x.detach(), Cut.rows(1, x.numel()), words.view(1, -1).view(torch.uint8), worst)
        return
    kernels.bits.pack(x.detach().numpy(), unsigned(words))


def unpack(words: Tensor, out: Tensor) -> None:
    """Fill out, shape (n,), float32, with +1 and -1, where they are."""
    if not out.is_cpu:
        cuda.bits.unpack(words.view(1, -1).view(torch.uint8), Cut.rows(1, out.numel()), 1.0, False, out)
        return
    kernels.bits.unpack(unsigned(words), np.float32(1), False, out.numpy())


def warm(size: int) -> None:
    """Compile the loops for an election of ``size`` voters, or load them from the cache."""
    for stretch in (1, GRAIN + 1):  # what is left of a stretch cut in grains has a loop of its own
        x, words = torch.zeros(WORD * stretch), torch.zeros(stretch, dtype=torch.int64)
        pack(x, words)
        for weights in (None, [1] * size):
            count(words.repeat(size, 1), weights, words)
        unpack(words, x)


def ballot_words(n: int) -> int:
    """Words of a ballot on n values."""
    return -(-n // WORD)


def unsigned(words: Tensor) -> NDArray[np.uint64]:
    """The words as the counting loops take them."""
    return words.numpy().view(np.uint64)


def planned_bytes(n: int, size: int, rank: int) -> int:
    """Bytes that a rank sends for n values."""
    words = ballot_words(n)
    mine = shards(words, size, GRAIN)[rank]
    own: int = mine.stop - mine.start
    return 8 * (words - own + (size - 1) * own)
