"""Nodes and lanes: dense sums inside a node, where memory is the wire, and compressed ones between nodes.

A lane joins the ranks that have the same place on their nodes. There are as many lanes as the smallest node has ranks,
and each carries its own chunk of a tensor, so that all of them use the network at once. Ranks beyond the lanes hand
their values to those on lanes, and take the result from them.

Cost of an all-reduce of n bytes on nodes of g ranks: ``2 (g - 1) / g n / B_memory``, and that of the lane's collective
for ``n / g`` bytes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt.comm import two_phase
from hpcopt.comm.shards import grain, shards
from hpcopt.comm.transport import Transport, wait_all
from hpcopt.comm.vote import GRAIN, ballot_words, elect_together, pack, unpack, warm_together
from hpcopt.compress import Codec


class Hierarchy:
    """The node and the lane of this rank.

    Attributes:
        node: the ranks of this node.
        lane: the ranks of this lane, in the order of nodes; None beyond the lanes.
        lanes: their number.
    """

    def __init__(self, transport: Transport, node: int) -> None:
        """Collective: over the transport's ranks, each naming its node by a number."""
        self.size = transport.size
        self.node = transport.split(node, transport.rank)
        lanes = torch.tensor([self.node.size])
        transport.all_reduce(lanes, "min")
        self.lanes = int(lanes)
        on_lane = self.node.rank < self.lanes
        lane = transport.split(self.node.rank if on_lane else self.lanes, transport.rank)
        self.lane = lane if on_lane else None

    @property
    def place(self) -> list[int]:
        """What decides which values this rank finishes: its place on its node, the lanes, its place on its lane."""
        return [self.node.rank, self.lanes, *((self.lane.rank, self.lane.size) if self.lane else ())]

    def reduce_scatter(self, x: Tensor, cut: int = 1) -> Tensor | None:
        """Sum x over the node; give the finished chunk of this rank's lane, a view of x. Collective: over the node."""
        chunks = [x[s] for s in shards(x.numel(), self.lanes, cut)]
        others = [rank for rank in range(self.node.size) if rank != self.node.rank]
        sends = [self.node.send(chunks[lane], lane) for lane in range(self.lanes) if lane != self.node.rank]
        mine = chunks[self.node.rank] if self.lane is not None else None
        if mine is not None:
            theirs = mine.new_empty(len(others), mine.numel())
            receives = [self.node.receive(row, other) for row, other in zip(theirs, others, strict=True)]
            for row, receive in zip(theirs, receives, strict=True):
                receive.wait()
                mine += row
        wait_all(sends)
        return mine

    def all_gather(self, x: Tensor, cut: int = 1) -> None:
        """Fill x on the whole node from the lanes' chunks. Collective: over the node."""
        chunks = [x[s] for s in shards(x.numel(), self.lanes, cut)]
        receives = [self.node.receive(chunks[lane], lane) for lane in range(self.lanes) if lane != self.node.rank]
        sends = []
        if self.lane is not None:
            others = [rank for rank in range(self.node.size) if rank != self.node.rank]
            sends = [self.node.send(chunks[self.node.rank], other) for other in others]
        wait_all(receives)
        wait_all(sends)

    def two_phase(
        self,
        x: Tensor,
        codec: Codec,
        *,
        sender_seed: int,
        owner_seed: int,
        sender_residual: Tensor | None = None,
        owner_residual: Tensor | None = None,
    ) -> Tensor:
        """As ``two_phase.all_reduce``, with the codec between nodes only. Collective: over all ranks.

        ``sender_seed`` belongs to the node's sum; only the chunk of this rank's lane is used of the residuals.
        """
        cut = grain(codec)
        chunk = self.reduce_scatter(x, cut)
        if chunk is not None and self.lane is not None:
            where = shards(x.numel(), self.lanes, cut)[self.node.rank]
            two_phase.all_reduce(
                self.lane,
                chunk,
                codec,
                sender_seed=sender_seed,
                owner_seed=owner_seed,
                sender_residual=None if sender_residual is None else sender_residual[where],
                owner_residual=None if owner_residual is None else owner_residual[where],
                first=where.start,
            )
        self.all_gather(x, cut)
        return x

    def planned_bytes(self, n: int, codec: Codec) -> int:
        """The most bytes that this rank sends in ``two_phase`` of n values."""
        if self.lane is None:
            return 4 * n
        mine = shards(n, self.lanes, grain(codec))[self.node.rank]
        own: int = mine.stop - mine.start
        inside = 4 * (n - own) + 4 * own * (self.node.size - 1)
        return inside + two_phase.planned_bytes(own, self.lane.size, self.lane.rank, codec)

    def vote(self, x: Tensor, weights: Sequence[int] | None = None) -> Tensor:
        """As ``vote.all_reduce``, bit for bit, with counts between nodes. Collective: over all ranks.

        Args:
            weights: votes of each rank of this node; the sum over all ranks decides.

        Returns:
            x itself.
        """
        words = torch.empty(ballot_words(x.numel()), dtype=torch.int64)
        pack(x, words)
        self.majority(words, weights)
        unpack(words, x)
        return x

    def planned_vote_bytes(self, n: int, weights: Sequence[int] | None = None) -> int:
        """The bytes that this rank sends in ``majority`` of n values; ``weights`` of the ranks of this node."""
        words = ballot_words(n)
        if self.lane is None:
            return 8 * words
        mine = shards(words, self.lanes, GRAIN)[self.node.rank]
        chunk: int = mine.stop - mine.start
        part = shards(chunk, self.lane.size, GRAIN)[self.lane.rank]
        own: int = part.stop - part.start
        planes = sum(weights or [1] * self.node.size).bit_length()
        inside = words - chunk + chunk * (self.node.size - 1)
        return 8 * (inside + planes * (chunk - own) + (self.lane.size - 1) * (own + 1))

    def majority(self, words: Tensor, weights: Sequence[int] | None = None) -> Tensor:
        """Replace a ballot, shape (words,), int64, by the outcome. Collective: over all ranks; ``weights`` as above."""
        stretches = shards(words.numel(), self.lanes, GRAIN)
        place = self.node.rank
        sends = [self.node.send(words[stretches[lane]], lane) for lane in range(self.lanes) if lane != place]
        outcome = None
        if self.lane is not None:
            votes = words.new_empty(self.node.size, stretches[place].stop - stretches[place].start)
            votes[place] = words[stretches[place]]
            wait_all([self.node.receive(votes[r], r) for r in range(self.node.size) if r != place])
            outcome = elect_together(self.lane, votes, weights or [1] * self.node.size)
        wait_all(sends)
        if outcome is not None:
            words[stretches[place]] = outcome
        self.all_gather(words, GRAIN)
        return words

    def warm(self) -> None:
        """Compile the loops of a vote, or load them from the cache."""
        warm_together()
