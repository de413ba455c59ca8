"""Gradients of virtual ranks (``hpcopt.comm.virtual``), summed to the same bits on any number of ranks.

Dense sums go up a fixed tree. On a grid, each virtual rank's values are rounded and the integers added, which is exact.
In a vote each virtual rank has a ballot, and a momentum of its own; ranks send counts of ballots.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcopt import kernels
from hpcopt.comm import doubling, fixed_tree, on_grid, vote
from hpcopt.comm.fixed_tree import Branches
from hpcopt.comm.transport import Transport
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.world import World
from hpcopt.compress import Bounded, Dense, Residuals
from hpcopt.compress.bounded import Grid
from hpcopt.compress.codec import float_array
from hpcopt.compress.finite import BOUND_BYTES, magnitude_bound, refuse
from hpcopt.errors import UnsupportedError
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.reducer import Reducer, Tree
from hpcopt.exchange.signs import VoteConfig, VoteReducer
from hpcopt.exchange.sums import NativeConfig, RingConfig
from hpcopt.exchange.within_bound import BoundedReducer


class VirtualReducer(Reducer):
    """What a reducer does beside, where a rank holds several virtual ranks: it takes over the gradients of each once
    they are there; those of the last one are in the bucket when it is reduced.
    """

    ranks: VirtualRanks

    @abstractmethod
    def take(self, bucket: Bucket, virtual_rank: int) -> None:
        """Keep what a bucket holds, of a virtual rank of this rank's, in their order. The first one begins a step: of
        one that was given up nothing stays.
        """


def refusal(config: ExchangeConfig) -> str:
    """Why an exchange has other bits on other numbers of ranks, whatever is done; empty, if it need not."""
    if config.adversary is not None:
        return "adversary names ranks"
    match config:
        case VoteConfig():
            if config.by_nodes or config.weights is not None:
                return f"{'by_nodes' if config.by_nodes else 'weights'} counts ranks"
            return "" if config.patience_s is None else "patience_s leaves ranks out"
        case NativeConfig() | RingConfig(codec=Dense()) | RingConfig(codec=Bounded()):
            return ""
        case RingConfig():
            return f'codec "{config.codec.name}" rounds what each rank sends'
    return f'name = "{config.name}" rounds, keeps or chooses what each rank sends'


def build(config: ExchangeConfig, ranks: VirtualRanks) -> VirtualReducer:
    """Make the reducer.

    Raises:
        UnsupportedError: on all ranks: there is none for this exchange.
    """
    if reason := refusal(config):
        raise UnsupportedError(
            f"[exchange] {reason}, so the bits depend on their number: the same ones on any number of ranks come by "
            '"ring" with codec dense or bounded, by "native" and by "vote"'
        ).everywhere()
    if isinstance(config, VoteConfig):
        return VirtualVoteReducer(config, ranks)
    if isinstance(config, RingConfig) and isinstance(config.codec, Bounded):
        return VirtualBoundedReducer(config.codec, ranks)
    return TreeReducer(ranks)


class TreeReducer(VirtualReducer):
    """Dense sums, of any dtype."""

    def __init__(self, ranks: VirtualRanks) -> None:
        self.ranks = ranks
        self._branches: dict[int, Branches] = {}

    def take(self, bucket: Bucket, virtual_rank: int) -> None:
        branches = self._branches.setdefault(bucket.index, Branches())
        if virtual_rank == self.ranks.held[0]:
            branches.clear()
        branches.add(range(virtual_rank, virtual_rank + 1), bucket.values)

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        with transport.traffic.decoding():
            self.take(bucket, self.ranks.held[-1])
        fixed_tree.all_reduce(transport, self.ranks, self._branches[bucket.index], bucket.values)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return fixed_tree.planned_bytes(bucket.values.numel(), bucket.values.element_size(), self.ranks, rank)

    def plan(self) -> str:
        held = len(self.ranks.held)
        return f"sums of {self.ranks.count} virtual ranks, {held} of them here, in a fixed tree"


class VirtualBoundedReducer(BoundedReducer, VirtualReducer):
    """Integers of each virtual rank's values, of which none is known before the largest of all values is: until then
    the gradients of all that are held here are kept. Tensors that are not float32 go up the tree.
    """

    def __init__(self, codec: Bounded, ranks: VirtualRanks) -> None:
        super().__init__(codec)
        self.ranks, self._tree = ranks, TreeReducer(ranks)
        self._kept: dict[int, list[Tensor]] = {}

    def take(self, bucket: Bucket, virtual_rank: int) -> None:
        if bucket.values.dtype != torch.float32:
            self._tree.take(bucket, virtual_rank)
            return
        held = self.ranks.held
        kept = self._kept.setdefault(bucket.index, [torch.empty_like(bucket.values) for _ in held[1:]])
        kept[virtual_rank - held[0]].copy_(bucket.values)

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        values = bucket.values
        if values.dtype != torch.float32:
            self._tree.reduce(transport, bucket, step)
            return
        parts = [*self._kept.get(bucket.index, ()), values]
        bound = torch.stack([magnitude_bound(part) for part in parts]).amax(0)
        largest = float(doubling.all_reduce(transport, bound, "max"))
        if math.isinf(largest):
            refuse(values, self._codec)
        grid = self._codec.grid(largest, self.ranks.count)
        with transport.traffic.encoding():
            integers = kernels.grid.quantise(float_array(parts[0]), 1 / grid.step)
            for part in parts[1:]:
                integers += kernels.grid.quantise(float_array(part), 1 / grid.step)
        on_grid.sum_integers(transport, integers, values, grid)

    def warm(self, size: int, buckets: Sequence[Bucket]) -> None:
        super().warm(max(size, 2), buckets)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        if bucket.values.dtype != torch.float32:
            return self._tree.planned_bytes(bucket, size, rank)
        bits = self._planned_grid(self.ranks.count).sum_bits
        integers_bytes = on_grid.planned_bytes(bucket.values.numel(), size, rank, Grid(1.0, bits, bits))
        return doubling.planned_bytes(BOUND_BYTES, size, rank) + integers_bytes

    def plan(self) -> str:
        return f"integers of {self.ranks.count} virtual ranks; the gradients of {len(self.ranks.held)} are kept here"


class VirtualVoteReducer(VoteReducer, VirtualReducer):
    """One ballot a virtual rank."""

    def __init__(self, config: VoteConfig, ranks: VirtualRanks) -> None:
        super().__init__(config)
        self.ranks = ranks
        self._momenta = {virtual_rank: Residuals() for virtual_rank in ranks.held}
        self._ballots: dict[int, Tensor] = {}

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """All virtual ranks are there in each vote."""

    def take(self, bucket: Bucket, virtual_rank: int) -> None:
        held, words = self.ranks.held, vote.ballot_words(bucket.values.numel())
        if bucket.index not in self._ballots:
            self._ballots[bucket.index] = torch.empty(len(held), words, dtype=torch.int64)
        self._require_float32(bucket)
        self._momentum = self._momenta[virtual_rank]
        values = self._momentum_after(bucket, bucket.values) if self._beta else bucket.values
        vote.pack(values, self._ballots[bucket.index][virtual_rank - held[0]])

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        held, words = self.ranks.held, self._words_of(bucket)
        with transport.traffic.encoding():
            self.take(bucket, held[-1])
        weights = self._weights(self.ranks.count, step) or [1] * self.ranks.count
        own = weights[held.start : held.stop]
        with transport.traffic.waiting():
            words.copy_(vote.elect_together(transport, self._ballots[bucket.index], own))
        if not self._packed:
            with transport.traffic.decoding():
                vote.unpack(words, bucket.values)

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        return False

    def warm(self, size: int, buckets: Sequence[Bucket]) -> None:
        super().warm(2, buckets)
        vote.warm_together()

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        n = vote.ballot_words(bucket.values.numel())
        return vote.planned_bytes_together(n, [len(self.ranks.held_by(other)) + 1 for other in range(size)], rank)

    def plan(self) -> str:
        return f"a vote of {self.ranks.count} virtual ranks, {len(self.ranks.held)} of them here"

    def state_dict(self) -> Tree:
        return {"momenta": {str(virtual_rank): m.state_dict() for virtual_rank, m in self._momenta.items()}}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """The momenta of the virtual ranks that are held here now, whoever held them."""
        for part in parts:
            for virtual_rank, momentum in part.get("momenta", {}).items():
                if int(virtual_rank) in self._momenta:
                    self._momenta[int(virtual_rank)].load_state_dict(momentum)
