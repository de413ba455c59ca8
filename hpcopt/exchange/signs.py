"""Exchange of votes: every rank votes the signs of its own momentum, and the gradient becomes the majority's sign
(Signum with majority vote; Bernstein et al. 2019, arXiv:1810.05291, alg. 1).

``m <- momentum m + (1 - momentum) g`` on each rank by itself; ``V = majority of sign(m)``. The optimizer behind it,
``signum``, then does ``x <- x - lr (V + weight_decay x)``.

Where ranks can be lost, a step's ballots go to one rank (``hpcopt.comm.roll_call``), and the majority is of those who
are present.

Where gradients are mostly noise, 4 ranks tie in 3 of 8 elections. Were all ties plus, every parameter would drift, and
a run's loss rises again; so with an even number of ranks one of them, in turn, has the casting vote.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt import kernels
from hpcopt.comm import dense, vote
from hpcopt.comm.hierarchy import Hierarchy
from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import Residuals
from hpcopt.compress.finite import magnitude_bound
from hpcopt.errors import CheckpointError, JobError, UnsupportedError
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.config import ExchangeConfig, Gives
from hpcopt.exchange.jury import Jury
from hpcopt.exchange.reducer import Reducer, Tree, shared_out


class VoteConfig(ExchangeConfig):
    """One bit a value each way: the majority of the ranks' signs."""

    name: Literal["vote"] = "vote"
    weights: tuple[int, ...] | Literal["learned"] | None = Field(
        None,
        description="votes of each rank, integers of at least 0; learned: none for ranks whose ballots contradict the "
        "others'; by default one each",
    )
    ties: Literal["in_turn", "plus"] = Field(
        "in_turn", description="one rank, another at each step, has the casting vote; or a tie is plus, as with weights"
    )
    by_nodes: bool = Field(False, description="send nodes' counts between nodes; the outcome is the same")
    momentum: float = Field(
        0.0, ge=0, lt=1, description="decay of each rank's mean of its own gradients, before the vote; or signum's own"
    )

    patience_s: float | None = Field(
        None,
        ge=0,
        description="with [run] elastic: seconds that a vote waits for the other ranks once the first ballot is there; "
        "who comes later has no vote; by default for ever",
    )

    @model_validator(mode="after")
    def _fits(self) -> "VoteConfig":
        if self.weights == "learned" and self.by_nodes:
            raise ValueError(
                'weights = "learned" needs by_nodes = false: nodes send counts, and nobody sees all ballots'
            )
        if self.patience_s is not None and (self.by_nodes or self.weights == "learned"):
            raise ValueError("patience_s needs all ballots at one place: leave out by_nodes and learned weights")
        return self

    @property
    def gives(self) -> Gives:
        return "signs"

    def build(self, seed: int) -> "VoteReducer":
        """Make the reducer; nothing is drawn."""
        return VoteReducer(self)


class VoteReducer(Reducer):
    """Owner of this rank's momentum, of the last outcomes, and of what is known of the voters."""

    grain = vote.WORD

    def __init__(self, config: VoteConfig) -> None:
        self._config, self._beta, self._packed = config, config.momentum, False
        self._momentum = Residuals()
        self._words: dict[int, Tensor] = {}
        self._before: list[tuple[Tensor, Tensor]] = []  # momenta, and what they were before the step
        self._hierarchy: Hierarchy | None = None
        self._neighbours: Sequence[int] = ()
        self._jury: Jury | None = None

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """Find the nodes, unless this is a rehearsal."""
        if self._config.weights == "learned":
            self._jury = Jury(transport.size)
        elif not self._config.by_nodes:
            self.roll_call = transport.roll_call(self._count, self._config.patience_s)
        if self._config.by_nodes and transport.point_to_point:
            self._hierarchy = Hierarchy(transport, world.node)
            self._neighbours = [rank for rank, host in enumerate(world.hosts) if host == world.hosts[world.rank]]

    def warm(self, size: int, buckets: Sequence[Bucket]) -> None:
        vote.warm(size)
        if self._hierarchy is not None:
            self._hierarchy.warm()
        if self._config.weights == "learned":
            Jury(size).see(torch.zeros(size, vote.GRAIN, dtype=torch.int64))
        kernels.bits.step(np.zeros(1, np.uint64), np.float32(1), np.float32(1), np.zeros(vote.WORD, np.float32))

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        weights, words = self._weights(transport.size, step), self._words_of(bucket)
        values = self._voted_on(transport, bucket, bucket.values)
        if self.roll_call is not None:  # at the end of the step
            with transport.traffic.encoding():
                vote.pack(values, words)
            return
        jury = self._jury if self._jury is not None and self._jury.counts_at(step) else None
        if isinstance(transport, StagedTransport) and not words.is_cpu:
            self._on_words(transport, values, words, weights, jury)
            if not self._packed:
                vote.unpack(words, bucket.values)
            return
        for where in self._decided(transport, vote.ballots_of(values), words, weights, jury):
            if not self._packed:
                with transport.traffic.decoding():
                    vote.unpack(words[where], bucket.values[vote.WORD * where.start : vote.WORD * where.stop])

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        """Ballots are packed there, and outcomes unpacked; what is counted are words in main memory."""
        messages = isinstance(transport, StagedTransport) and transport.point_to_point
        return messages and bucket.values.dtype == torch.float32

    def _on_words(
        self,
        transport: StagedTransport,
        values: Tensor,
        words: Tensor,
        weights: Sequence[int] | None,
        jury: Jury | None,
    ) -> None:
        """Vote on values of a device into words there: one copy of each way, and one launch to pack."""
        with transport.traffic.encoding():
            vote.pack(values, words)
            leaving, place = transport.slots.fetched(words), transport.slots.lend(words)

        def pack(stretch: slice, ballot: Tensor) -> None:
            ballot.copy_(leaving.host[stretch])

        for _ in self._decided(transport.inner, pack, place.host, weights, jury):
            pass
        leaving.give_back()
        place.deliver(words)

    def by_sum(self, transport: Transport, bucket: Bucket, carry: Callable[[], object]) -> None:
        """Decide without a vote: the outcome is the sign of the sum, over the ranks, of what they would vote on.

        Args:
            carry: replaces the bucket's values by their sum.
        """
        values = self._voted_on(transport, bucket, bucket.values)
        if values is not bucket.values:
            bucket.values.copy_(values)
        carry()
        with transport.traffic.decoding():
            words = self._words_of(bucket)
            vote.pack(bucket.values, words)
            if not self._packed:
                vote.unpack(words, bucket.values)

    def _words_of(self, bucket: Bucket) -> Tensor:
        """Where the bucket's outcome stays."""
        if bucket.index not in self._words:
            words = vote.ballot_words(bucket.values.numel())
            self._words[bucket.index] = torch.empty(words, dtype=torch.int64, device=bucket.values.device)
        return self._words[bucket.index]

    def _voted_on(self, transport: Transport, bucket: Bucket, gradients: Tensor) -> Tensor:
        """The values whose signs this rank votes: its momentum, if it keeps one, or the gradients themselves."""
        self._require_float32(bucket)
        if not self._beta:
            return gradients
        with transport.traffic.encoding():
            if self._config.patience_s is not None:
                momentum = self._momentum.flat(bucket.layout, gradients.device)
                self._before.append((momentum, momentum.clone()))
            return self._momentum_after(bucket, gradients)

    def _require_float32(self, bucket: Bucket) -> None:
        if bucket.values.dtype != torch.float32:
            raise UnsupportedError(
                f'votes need float32 parameters, not {bucket.values.dtype}: use [exchange] name = "ring"'
            ).everywhere()

    def finish_step(self, transport: Transport, buckets: Sequence[Bucket], step: int) -> None:
        """What the ranks have counted of all buckets becomes the verdict on the voters; or all buckets are voted on."""
        if self.roll_call is not None:
            self._hold(transport, self.roll_call, buckets, step)
        if self._jury is not None and self._jury.counts_at(step):
            with transport.traffic.waiting():
                self._jury.confer(transport)

    def _hold(self, transport: Transport, roll_call: RollCall, buckets: Sequence[Bucket], step: int) -> None:
        """Vote on all buckets of a step at once, with those who are present; a rank that is not keeps its momentum."""
        words = [self._words_of(bucket) for bucket in buckets]
        ballot = torch.cat([part.cpu() for part in words]) if words else torch.empty(0, dtype=torch.int64)
        with transport.traffic.waiting():
            decided, sent_bytes = roll_call.hold(step + 1, ballot.view(torch.uint8).numpy())
        transport.traffic.sent_bytes += sent_bytes
        for momentum, before in self._before if transport.rank in roll_call.absent else ():
            momentum.copy_(before)  # whether this rank was late with its gradients or had none does not matter
        self._before.clear()
        outcome = torch.from_numpy(decided.outcome.copy()).view(torch.int64)
        parts = torch.split(outcome, [part.numel() for part in words])
        with transport.traffic.decoding():
            for bucket, part, mine in zip(buckets, parts, words, strict=True):
                mine.copy_(part)
                if not self._packed:
                    vote.unpack(mine, bucket.values)

    def _count(self, number: int, ballots: Mapping[int, np.ndarray]) -> np.ndarray:
        """The majority of those present in a round."""
        given = self._config.weights
        weights: Sequence[int] | None
        if isinstance(given, tuple):
            weights = [given[rank] for rank in ballots]
        else:
            weights = self._one_each(list(range(len(ballots))), len(ballots), number - 1)
        votes = torch.from_numpy(np.stack(list(ballots.values()))).view(torch.int64)
        outcome = torch.empty(votes.shape[1], dtype=torch.int64)
        vote.count(votes, weights, outcome)
        return outcome.view(torch.uint8).numpy()

    def _momentum_after(self, bucket: Bucket, gradients: Tensor) -> Tensor:
        """This rank's momentum with the bucket's gradients; without them if they hold Inf or NaN, which would stay."""
        momentum = self._momentum.flat(bucket.layout, gradients.device)
        if not gradients.is_cpu:  # where nobody waits to be told
            after = (momentum * self._beta).add_(gradients, alpha=1 - self._beta)
            return momentum.copy_(torch.where(torch.isfinite(gradients).all(), after, momentum))
        if math.isinf(float(magnitude_bound(gradients))):
            return momentum
        return momentum.mul_(self._beta).add_(gradients, alpha=1 - self._beta)

    def packed_signs(self, momentum: float) -> Callable[[Bucket, nn.Parameter], Tensor]:
        """Vote on the signs of the ranks' momenta from now on, and leave gradients as they are.

        Raises:
            JobError: on all ranks: the exchange has a momentum already.
        """
        if momentum and self._beta:
            raise JobError(
                "the ranks' momentum stands in [exchange] or in [solver.optimizer], not in both"
            ).everywhere()
        self._packed, self._beta = True, momentum or self._beta
        return self._outcome

    def _outcome(self, bucket: Bucket, parameter: nn.Parameter) -> Tensor:
        """The majority's signs for a parameter, shape (ceil(n / 64),), int64; a set bit is minus."""
        first = bucket.offsets[parameter] // vote.WORD
        return self._words[bucket.index][first : first + vote.ballot_words(parameter.numel())]

    def _decided(
        self,
        transport: Transport,
        pack: Callable[[slice, Tensor], None],
        words: Tensor,
        weights: Sequence[int] | None,
        jury: Jury | None,
    ) -> Iterator[slice]:
        """Vote, and give each stretch of words once it is decided."""
        if self._hierarchy is None:
            yield from vote.elect(transport, pack, words, weights, None if jury is None else jury.see)
            return
        with transport.traffic.encoding():
            pack(slice(0, words.numel()), words)
        self._hierarchy.majority(words, self._of_node(weights))
        yield slice(0, words.numel())

    def _of_node(self, weights: Sequence[int] | None) -> Sequence[int] | None:
        return None if weights is None else [weights[rank] for rank in self._neighbours]

    def _weights(self, size: int, step: int) -> Sequence[int] | None:
        """Of the ranks' votes at a step. A second vote where all others have one decides ties, and nothing else."""
        given = self._config.weights
        if isinstance(given, tuple):
            if len(given) != size:
                raise UnsupportedError(f"[exchange] weights names {len(given)} ranks, the job has {size}").everywhere()
            return given
        return self._one_each(range(size) if self._jury is None else self._jury.voters, size, step)

    def _one_each(self, voters: Sequence[int], size: int, step: int) -> Sequence[int] | None:
        weights = [int(rank in voters) for rank in range(size)]
        if len(voters) % 2 == 0 and self._config.ties == "in_turn":
            weights[voters[step % len(voters)]] += 1
        return None if set(weights) == {1} else weights

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        if self._hierarchy is not None:
            return self._hierarchy.planned_vote_bytes(bucket.values.numel(), self._of_node(self._weights(size, rank)))
        if self.roll_call is not None:
            return 8 * vote.ballot_words(bucket.values.numel()) * max(1, size - 1)
        return vote.planned_bytes(bucket.values.numel(), size, rank)

    def finish_bytes(self, size: int, rank: int) -> int:
        """Those of the counts, though they come at one step in 8 only."""
        return dense.planned_bytes(8 * size**2, size, rank) if self._config.weights == "learned" else 0

    def metrics(self) -> dict[str, float]:
        return {} if self._jury is None else {"voters": float(len(self._jury.voters))}

    def state_dict(self) -> Tree:
        state = {"momentum": self._momentum.state_dict()}
        return state if self._jury is None else {**state, "agreement": self._jury.agreement}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """The momentum that this rank had; with more ranks than saved, the new ones begin at zero. Of other ranks than
        the saved ones nothing is known, and all have a vote.
        """
        self._momentum.load_state_dict(shared_out(parts, "momentum", rank, size))
        if self._jury is not None and len(parts) == size and "agreement" in parts[rank]:
            agreement = parts[rank]["agreement"]
            if agreement.shape != (size, size):
                raise CheckpointError(f"the agreement of {size} ranks' votes has the shape {tuple(agreement.shape)}")
            self._jury.agree_on(agreement.clone())
