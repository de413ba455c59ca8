"""Gradients summed over the ranks while the backward pass goes on.

Parameters lie in flat buckets, last ones first. When the gradients of a bucket are complete, a thread of its own
exchanges it, over a transport of its own, while backward computes the next. Buckets always go in the order of their
indices, whatever order they become ready in: all ranks run the same collectives in the same order, also where the graph
differs between ranks or steps. A parameter that a step does not use counts as a zero gradient.

In a loop of one's own:

    exchange = Exchange(connect(), model.named_parameters(), TwoPhaseConfig(codec=QSGD(bits=4)), mean=True)
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        exchange.finish()
        optimizer.step()
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from hpcopt.comm.agreement import require_same_call
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.warm_up import compile_once
from hpcopt.comm.world import World
from hpcopt.errors import HpcoptError, PeerError, UnsupportedError
from hpcopt.exchange.bucket import Bucket, make_buckets
from hpcopt.exchange.choices import Choices
from hpcopt.exchange.overlap import Overlap
from hpcopt.exchange.reducer import Tree
from hpcopt.exchange.trace import Trace
from hpcopt.exchange.vote import VoteReducer
from hpcopt.phases import PhaseClock
from hpcopt.store.saved_parts import SavedParts


class Exchange:
    """Sums the gradients of a model, bit-equal on all ranks.

    Attributes:
        buckets: in the order in which they are exchanged.
    """

    def __init__(
        self,
        world: World,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: Overlap,
        *,
        mean: bool = False,
        clock: PhaseClock | None = None,
    ) -> None:
        """Make the buckets and watch the parameters' gradients. Collective.

        Args:
            mean: give means over the ranks in place of sums.
            clock: counts the exchange's phases.

        Raises:
            UnsupportedError: two parameters have one name.
            PeerError: the ranks' parameters differ in name, shape or dtype, or their exchanges in settings.
        """
        self._world, self._mean, self._clock = world, mean, clock or PhaseClock()
        self._operation, self._reducer, self._adversary = config.name, config.build(), config.adversary
        self._trace = Trace(config.trace, world.rank)
        parameters = [(name, p) for name, p in named_parameters if p.requires_grad]
        with world.together():
            bucket_bytes = int(config.bucket_mb * 1e6)
            self.buckets = make_buckets(parameters, bucket_bytes, self._reducer.kind, self._reducer.grain)
        self._require_same_schedule()
        self._bucket_of = {p: bucket for bucket in self.buckets for p in bucket.views}
        self._transport = world.transport.duplicate()
        self._reducer.prepare(world, self._transport, self.buckets)
        if self._transport.point_to_point:  # this is no rehearsal
            compile_once(world, partial(self._reducer.warm, world.size, self.buckets))
        self._seconds = [0.0] * len(self.buckets)
        self._thread = ThreadPoolExecutor(1, "exchange") if config.overlap and self._transport.threaded else None
        self._step = 0
        self._rearm(1)
        for p in self._bucket_of:
            p.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]

    def zero(self, backwards: int = 1) -> None:
        """Make every gradient zero, before the first of ``backwards`` backward passes whose gradients add up."""
        self._rearm(backwards)
        for bucket in self.buckets:
            bucket.values.zero_()
            for p, view in bucket.views.items():
                p.grad = view

    def finish(self) -> None:
        """Exchange what is not yet under way and wait for all: every ``grad`` is then the sum over the ranks.
        Collective.

        Raises:
            HpcoptError: what went wrong in the exchange of a bucket.
        """
        with self._clock("exchange"), self._trace("finish", "training", step=self._step):
            if self._world.debug:
                self._world.require_same(list(self._bucket_of), f"before the update of step {self._step} parameters")
            for p, passes in self._passes_left.items():
                if passes and p.grad is None:
                    self._bucket_of[p].views[p].zero_()
            self._send(len(self.buckets))
            for future in self._under_way:
                future.result()
            for bucket in self.buckets:
                for p, view in bucket.views.items():
                    p.grad = view
        self._count()
        if self.choices is not None:
            self.choices.record(self._seconds)
        self._step += 1
        self._rearm(1)

    @property
    def choices(self) -> Choices | None:
        """What each bucket takes, if that was measured."""
        return self._reducer.choices

    def metrics(self) -> dict[str, float]:
        """Scalars to record of a step, by name, the same on all ranks."""
        return self._reducer.metrics()

    def outcome(self, p: nn.Parameter) -> Tensor:
        """What a vote that leaves its outcomes packed decided for a parameter, for ``Signum``.

        Raises:
            UnsupportedError: the exchange is no vote.
        """
        if not isinstance(self._reducer, VoteReducer):
            raise UnsupportedError(f"the exchange {self._operation!r} decides no signs: use a VoteConfig").everywhere()
        return self._reducer.outcome(self._bucket_of[p], p)

    def norm(self) -> Tensor:
        """Euclidean norm over all gradients, as a float64 scalar."""
        norms = [torch.linalg.vector_norm(bucket.values, dtype=torch.float64) for bucket in self.buckets]
        return torch.stack(norms).square().sum().sqrt()

    def scale(self, factor: float) -> None:
        """Multiply every gradient."""
        for bucket in self.buckets:
            bucket.values.mul_(factor)

    def planned_bytes(self) -> int:
        """Bytes that this rank sends in a step, at most."""
        return sum(self._reducer.planned_bytes(b, self._world.size, self._world.rank) for b in self.buckets)

    def plan(self) -> dict[str, str]:
        """What a step will do, for a person: lines of (what, how much)."""
        lines = {"bytes a step": f"{self.planned_bytes():,} sent by each rank for the gradients"}
        return {"exchange": self._reducer.plan(), **lines} if self._reducer.plan() else lines

    def rank_state_dict(self) -> Tree:
        """This rank's own state (residuals, momentum), by parameter name."""
        return {"step": self._step, "reducer": self._reducer.state_dict()}

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        """Take over the states of all ranks that saved; there may be more or fewer than now."""
        if len(parts):
            rank, size = self._world.rank, self._world.size
            self._step = parts[rank % len(parts)]["step"]
            self._reducer.load_state_dict(SavedParts.of(parts).under("reducer"), rank, size)

    def _require_same_schedule(self) -> None:
        """Ranks that would run other collectives than rank 0 must say so now, and not hang later. Collective."""
        schedule = [f"{b.name}: {b.values.dtype}, {b.kind}, {dict(b.layout)}" for b in self.buckets]
        digest = hashlib.blake2b("\n".join(schedule).encode(), digest_size=8).hexdigest()
        digests = self._world.gather_text(digest)
        different = [rank for rank, theirs in enumerate(digests) if theirs != digests[0]]
        if different:
            raise PeerError(
                f"ranks {different} would exchange other buckets than rank 0: do all ranks build the same model, "
                "from the same job file?"
            ).everywhere()

    def _rearm(self, backwards: int) -> None:
        self._passes_left = dict.fromkeys(self._bucket_of, backwards)
        self._waiting_for = [len(bucket.views) for bucket in self.buckets]
        self._next = 0
        self._under_way: list[Future[None]] = []

    def _ready(self, p: nn.Parameter) -> None:
        """A backward pass has finished the gradient of p."""
        bucket = self._bucket_of[p]
        view = bucket.views[p]
        if p.grad is not view:
            view.copy_(p.grad)  # type: ignore[arg-type]
            p.grad = view
        self._passes_left[p] -= 1
        if self._passes_left[p] < 0:
            raise HpcoptError(
                "a gradient changed after it was sent: tell exchange.zero(backwards=N) how many backward passes add up"
            )
        if self._passes_left[p] == 0:
            self._waiting_for[bucket.index] -= 1
            self._send(self._next_incomplete())

    def _next_incomplete(self) -> int:
        if self._thread is None:
            return 0
        waiting = self._waiting_for
        return next((k for k in range(self._next, len(waiting)) if waiting[k]), len(waiting))

    def _send(self, end: int) -> None:
        """Exchange the buckets up to ``end`` that are not yet under way."""
        while self._next < end:
            reduce = partial(self._reduce, self.buckets[self._next])
            self._next += 1
            if self._thread is None:
                reduce()
            else:
                self._under_way.append(self._thread.submit(reduce))

    def _reduce(self, bucket: Bucket) -> None:
        dense_bytes = bucket.values.numel() * bucket.values.element_size()
        self._transport.traffic.dense_bytes += dense_all_reduce_bytes(dense_bytes, self._world.size)
        if self._adversary is not None:
            self._adversary.falsify(bucket, self._world.rank, self._step)
        operation = self.choices.buckets[bucket.index].algorithm if self.choices else self._operation
        what = f"{operation} of {bucket.name}, step {self._step}: {bucket.values.numel()} x {bucket.values.dtype}"
        trace = self._trace(bucket.name, "exchange", step=self._step, values=bucket.values.numel())
        with trace, self._world.watch(what, self._world.ranks):
            if self._world.debug:
                require_same_call(self._transport, what)
            start_s = time.perf_counter()
            self._reducer.reduce(self._transport, bucket, self._step)
            self._seconds[bucket.index] = time.perf_counter() - start_s
        if self._mean:
            bucket.values.div_(self._world.size)

    def _count(self) -> None:
        """Hand on what the exchange's transport has counted."""
        counts = self._transport.traffic.lap()
        self._world.traffic.add(counts)
        self._clock.add("encode", counts.encode_s)
        self._clock.add("comm", counts.wire_s)
        self._clock.add("decode", counts.decode_s)
