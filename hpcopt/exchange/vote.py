"""Exchange of votes: every rank votes the signs of its own momentum, and the gradient becomes the majority's sign
(Signum with majority vote; Bernstein et al. 2019, arXiv:1810.05291, alg. 1).

``m <- momentum m + (1 - momentum) g`` on each rank by itself; ``V = majority of sign(m)``. The optimizer behind it,
``signum``, then does ``x <- x - lr (V + weight_decay x)``.

Where gradients are mostly noise, 4 ranks tie in 3 of 8 elections. Were all ties plus, every parameter would drift, and
a run's loss rises again; so with an even number of ranks one of them, in turn, has the casting vote.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.comm import vote
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import Residuals
from hpcopt.errors import UnsupportedError
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.overlap import Overlap
from hpcopt.exchange.reducer import Reducer, Tree, shared_out


class VoteConfig(Overlap):
    """One bit a value each way: the majority of the ranks' signs."""

    name: Literal["vote"] = "vote"
    weights: tuple[int, ...] | None = Field(
        None, description="votes of each rank, integers of at least 0; by default one each"
    )
    ties: Literal["in_turn", "plus"] = Field(
        "in_turn", description="one rank, another at each step, has the casting vote; or a tie is plus, as with weights"
    )
    by_nodes: bool = Field(False, description="send nodes' counts between nodes; the outcome is the same")
    momentum: float = Field(0.0, ge=0, lt=1, description="set by the solver: that of signum, each rank's own")
    packed: bool = Field(
        False, description="set by the solver: outcomes stay packed, for signum, and gradients as they are"
    )

    def build(self) -> "VoteReducer":
        """Make the reducer."""
        return VoteReducer(self)


class VoteReducer(Reducer):
    """Owner of this rank's momentum, and of the last outcomes."""

    grain = vote.WORD

    def __init__(self, config: VoteConfig) -> None:
        self._config = config
        self._momentum = Residuals()
        self._words: dict[int, Tensor] = {}
        self._hierarchy: Hierarchy | None = None
        self._neighbours: Sequence[int] = ()

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """Find the nodes, unless this is a rehearsal."""
        if self._config.by_nodes and transport.point_to_point:
            self._hierarchy = Hierarchy(transport, world.node)
            self._neighbours = [rank for rank, host in enumerate(world.hosts) if host == world.hosts[world.rank]]

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        weights = self._weights(transport.size, step)
        beta, values = self._config.momentum, bucket.values
        with transport.traffic.encoding():
            if values.dtype != torch.float32 or not values.is_cpu:
                raise UnsupportedError(
                    f"votes need float32 parameters in main memory, not {values.dtype} on {values.device.type}: "
                    'use [run] device = "cpu", or [exchange] name = "two_phase" with codec "sign"'
                ).everywhere()
            if beta:
                values = self._momentum.flat(bucket.layout, values.device).mul_(beta).add_(values, alpha=1 - beta)
        if bucket.index not in self._words:
            self._words[bucket.index] = torch.empty(vote.ballot_words(values.numel()), dtype=torch.int64)
        words = self._words[bucket.index]
        for where in self._decided(transport, values, words, weights):
            if not self._config.packed:
                with transport.traffic.decoding():
                    vote.unpack(words[where], bucket.values[vote.WORD * where.start : vote.WORD * where.stop])

    def outcome(self, bucket: Bucket, parameter: nn.Parameter) -> Tensor:
        """The majority's signs for a parameter, shape (ceil(n / 64),), int64; a set bit is minus."""
        first = bucket.offsets[parameter] // vote.WORD
        return self._words[bucket.index][first : first + vote.ballot_words(parameter.numel())]

    def _decided(
        self, transport: Transport, values: Tensor, words: Tensor, weights: Sequence[int] | None
    ) -> Iterator[slice]:
        """Vote, and give each stretch of words once it is decided."""
        if self._hierarchy is None:
            yield from vote.vote(transport, values, words, weights)
            return
        with transport.traffic.encoding():
            vote.pack(values, words)
        self._hierarchy.majority(words, self._of_node(weights))
        yield slice(0, words.numel())

    def _of_node(self, weights: Sequence[int] | None) -> Sequence[int] | None:
        return None if weights is None else [weights[rank] for rank in self._neighbours]

    def _weights(self, size: int, step: int) -> Sequence[int] | None:
        """Of the ranks' votes at a step. A second vote where all others have one decides ties, and nothing else."""
        weights = self._config.weights
        if weights is not None and len(weights) != size:
            raise UnsupportedError(f"[exchange] weights names {len(weights)} ranks, the job has {size}").everywhere()
        if weights is None and size % 2 == 0 and self._config.ties == "in_turn":
            return [1 + (rank == step % size) for rank in range(size)]
        return weights

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        if self._hierarchy is not None:
            return self._hierarchy.planned_vote_bytes(bucket.values.numel(), self._of_node(self._weights(size, rank)))
        return vote.planned_bytes(bucket.values.numel(), size, rank)

    def state_dict(self) -> Tree:
        return {"momentum": self._momentum.state_dict()}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """The momentum that this rank had; with more ranks than saved, the new ones begin at zero."""
        self._momentum.load_state_dict(shared_out(parts, "momentum", rank, size))
