"""Who has a vote: ranks whose ballots contradict the others' lose it, and win it back when they no longer do.

For every two ranks the jury keeps ``A[i, j]``: the elections in which their ballots agree less those in which they
differ, of one step in ``EVERY``, an older count weighing less by ``1 / MEMORY`` at each new one. On n elections,
ballots of coin flips have A near 0, those of one mind A = n; ``A[i, i]`` is the number of elections. These are integers
that all ranks share, so all come to the same verdict.

Beginning with all ranks, the voter that agrees least with the other voters is sent out, if it agrees with them less
than an eighth as much as their median does; then the next one; never half of the ranks or more. A liar lowers
everybody's agreement, so even the median voter may contradict the others; who does so four times as much is sent out.
Where two halves contradict each other all do it alike, and nobody is.

So ranks that turn their signs round lose their vote, ranks that send noise do where the others' ballots are not all
noise themselves, and a rank with more noise than others keeps it.

A vote or none is the careful half of the weights that independent voters should have, log(p / (1 - p)) for one that is
right with probability p (Nitzan & Paroush 1982, International Economic Review 23). The other half, a vote of negative
weight for p < 1/2, gains from a liar only as long as it lies in the same way; and weights above the others' would be a
prize for two liars who send the same ballot. Agreement with the other voters stands for p, which nobody knows (Ghosh,
Kale & McAfee 2011, "Who moderates the moderators?").

What this cannot tell: a rank whose data are unlike all others' from a liar, and a lie where values are zeros, which all
vote plus.
"""

from statistics import median_high

import torch
from torch import Tensor

from hpcopt import kernels
from hpcopt.comm import dense
from hpcopt.comm.transport import Transport
from hpcopt.comm.vote import unsigned

EVERY = 8  # steps from count to count
MEMORY = 64  # counts that a verdict rests on, about; from one to the next a pair's agreement varies by 0.14 of n
SHARE = 1 / 8  # of the median voter's agreement with the others, that each must reach
WORSE = 4  # times as much as a median voter that contradicts the others, each may contradict them
MARGIN = 0.01  # of all elections, by which agreement may be off by chance


class Jury:
    """The agreement of ballots, and what follows from it.

    Attributes:
        agreement: A, shape (P, P), int64, the same on all ranks.
        voters: the ranks that have a vote, ascending.
    """

    def __init__(self, size: int) -> None:
        """All have a vote, until counts say otherwise."""
        self._counts = torch.zeros(size, size, dtype=torch.int64)
        self.agree_on(torch.zeros_like(self._counts))

    def counts_at(self, step: int) -> bool:
        """Whether the ballots of a step are to be counted."""
        return step % EVERY == EVERY - 1

    def see(self, votes: Tensor) -> None:
        """Count all ranks' ballots in some elections, shape (P, words), int64."""
        kernels.ballots.agreements(unsigned(votes), self._counts.numpy())

    def confer(self, transport: Transport) -> None:
        """Add up what the ranks have counted, each in its own elections. Collective: over the transport's ranks."""
        dense.all_reduce(transport, self._counts)
        self.agree_on(self.agreement - self.agreement // MEMORY + self._counts)
        self._counts.zero_()

    def agree_on(self, agreement: Tensor) -> None:
        """Come to the verdict that follows from an agreement A."""
        self.agreement, self.voters = agreement, voters(agreement.tolist())


def voters(agreement: list[list[int]]) -> list[int]:
    """Which of P ranks have a vote, ascending: more than half of them.

    Args:
        agreement: A, (P, P).
    """
    seated = list(range(len(agreement)))
    for _ in range((len(agreement) - 1) // 2):
        scores = {rank: _with_others(agreement[rank], rank, seated) for rank in seated}
        least, median = min(seated, key=scores.__getitem__), median_high(scores.values())
        if scores[least] >= min(SHARE * median, WORSE * median) - MARGIN * agreement[least][least]:
            break
        seated.remove(least)
    return seated


def _with_others(row: list[int], rank: int, seated: list[int]) -> float:
    return sum(row[other] for other in seated if other != rank) / (len(seated) - 1)
