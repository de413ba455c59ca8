"""Gradients summed over the ranks while the backward pass goes on.

Parameters lie in flat buckets, last ones first. When the gradients of a bucket are complete, a thread of its own
exchanges it, over a transport of its own, while backward computes the next. Buckets always go in the order of their
indices, whatever order they become ready in: all ranks run the same collectives in the same order, also where the graph
differs between ranks or steps. A parameter that a step does not use counts as a zero gradient.

In a loop of one's own:

    exchange = Exchange(connect(), model, TwoPhaseConfig(codec=QSGD(bits=4)), mean=True)
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        exchange.finish()
        optimizer.step()
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpcopt.comm.agreement import require_same_call
from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.virtual import VirtualRanks
from hpcopt.comm.warm_up import compile_once
from hpcopt.comm.world import World
from hpcopt.config import Config
from hpcopt.errors import HpcoptError, PeerError, UnsupportedError
from hpcopt.exchange.bucket import Bucket, make_buckets
from hpcopt.exchange.choices import Choices
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.follow import Named, Parameters
from hpcopt.exchange.lane import lane_for
from hpcopt.exchange.reducer import Reducer, Tree
from hpcopt.exchange.trace import Trace
from hpcopt.exchange.virtual import VirtualReducer
from hpcopt.exchange.virtual import build as virtual_reducer
from hpcopt.held import require_attributes
from hpcopt.hooks import after_accumulation
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
        model: nn.Module | Named,
        config: ExchangeConfig,
        *,
        mean: bool = False,
        broadcast: bool = True,
        seed: int = 0,
        clock: PhaseClock | None = None,
        virtual: VirtualRanks | None = None,
    ) -> None:
        """Make the buckets and watch the parameters' gradients. Collective.

        Args:
            model: whose parameters are followed; or names and parameters, which must then stay these.
            mean: give means over the ranks in place of sums; signs stay signs.
            broadcast: start from rank 0's parameters, and buffers; if not, it is an error that ranks' differ.
            seed: of all that codecs draw at random, the same on all ranks.
            clock: counts the exchange's phases.
            virtual: sum the gradients of virtual ranks, those of the ones on this rank in their order, with
                ``next_virtual_rank`` between two: to the same bits on any number of ranks.

        Raises:
            UnsupportedError: two parameters have one name; this exchange cannot sum virtual ranks.
            PeerError: the ranks' parameters differ in name, shape, dtype or value, or their exchanges in settings.
        """
        self._world, self._mean, self._clock = world, mean and config.gives == "sums", clock or PhaseClock()
        self._operation, self._adversary, self._seed = config.name, config.adversary, seed
        self._virtual, self._turn, self._turns = virtual, 0, 1 if virtual is None else len(virtual.held)
        self._reducer = config.build(seed) if virtual is None else virtual_reducer(config, virtual)
        require_attributes(self._reducer, Reducer)
        self._trace = Trace(config.trace, world.rank)
        self._parameters = Parameters(model)
        trained = self._parameters.trained
        with world.together():
            bucket_bytes = int(config.bucket_mb * 1e6)
            self.buckets = make_buckets(trained, bucket_bytes, self._reducer.kind, self._reducer.grain)
        self._require_same_schedule()
        start = [p for _, p in trained]
        if broadcast and isinstance(model, nn.Module):
            start = list(model.state_dict().values())
        world.start_alike(start, broadcast)
        self._bucket_of = {p: bucket for bucket in self.buckets for p in bucket.views}
        self._transport = world.transport.duplicate()
        self._reducer.prepare(world, self._transport, self.buckets)
        self._lane, self._sum = lane_for([bucket.values for bucket in self.buckets]), self._reducer.reduce
        seen: Sequence[Bucket] = self.buckets
        if self._lane is not None:
            self._sum = partial(self._lane.reduce, self._reducer)
            seen = self._lane.seen(self._reducer, self._transport, self.buckets)
        if not self._transport.imagined:
            compile_once(world, partial(self._reducer.warm, world.size, seen))
        world.traffic.add(self._transport.traffic.lap())  # of getting ready, not of a step
        self._seconds = [0.0] * len(self.buckets)
        self._thread = ThreadPoolExecutor(1, "exchange") if config.overlap and self._transport.threaded else None
        self._step = 0
        self._rearm(1)
        self._hooks: dict[nn.Parameter, RemovableHandle] = {}
        for p in self._bucket_of:
            self._watch(p)

    def remove(self) -> None:
        """Leave the parameters alone from now on, so that another exchange can be made for them."""
        for hook in self._hooks.values():
            hook.remove()
        if self._thread is not None:
            self._thread.shutdown()

    def zero(self, backwards: int = 1) -> None:
        """Make every gradient zero, before the first of ``backwards`` backward passes whose gradients add up; of this
        rank's virtual ranks, the last one's count. A step that was given up in its middle ends here, and counts.
        Collective only then.
        """
        self._again(backwards)
        for bucket in self.buckets:
            bucket.values.zero_()
            for p, view in bucket.views.items():
                p.grad = view
        self._note()

    def begin(self, backwards: int = 1) -> None:
        """As ``zero``, with no gradients, which count as zero; those that are given come to their place."""
        self._again(backwards)
        for p in self._bucket_of:
            p.grad = None

    def _again(self, backwards: int) -> None:
        if self._next:
            self._complete()
        self._rearm(backwards)

    def next_virtual_rank(self) -> None:
        """Take over the gradients of one of this rank's virtual ranks, but for the last, and make them zero again.

        Raises:
            UnsupportedError: there is none left; parameters were changed as they may not be.
        """
        reducer, virtual = self._reducer, self._virtual
        if virtual is None or not isinstance(reducer, VirtualReducer) or self._turn + 1 >= self._turns:
            raise UnsupportedError("next_virtual_rank(): this rank holds no further virtual rank in this step")
        if self._turn == 0 and (refusal := self._look_around()) is not None:
            raise refusal
        for bucket in self.buckets:
            for p, place in bucket.views.items():
                if p.grad is not place:
                    bucket.take(p)
            reducer.take(bucket, virtual.held[self._turn])
            bucket.values.zero_()
        self._turn += 1

    def start(self) -> None:
        """Exchange all gradients as they are now, beside what the program does until ``finish``. Collective."""
        self._require_all_virtual_ranks()
        if (refusal := self._look_around()) is not None:
            raise refusal
        self._send(len(self.buckets))

    def finish(self) -> None:
        """Exchange what is not yet under way and wait for all: every ``grad`` is then the sum over the ranks, also of
        gradients that no backward pass has left. Parameters that are frozen by now have none. Collective.

        Raises:
            HpcoptError: what went wrong in the exchange of a bucket; the next step goes as ever.
            UnsupportedError: once all buckets are exchanged: parameters or gradients were changed as they may not be.
        """
        with self._clock("exchange"), self._trace("finish", "training", step=self._step):
            if self._world.debug:
                self._world.require_same(list(self._bucket_of), f"before the update of step {self._step} parameters")
            self._require_all_virtual_ranks()
            refusal = self._look_around()
            self._complete()
            if refusal is not None:
                raise refusal
            for p, bucket in self._bucket_of.items():
                p.grad = bucket.views[p] if p.requires_grad else None
        self._count()
        if self.choices is not None:
            self.choices.record(self._seconds)

    @property
    def choices(self) -> Choices | None:
        """What each bucket takes, if that was measured."""
        return self._reducer.choices

    @property
    def roll_call(self) -> RollCall | None:
        """Who is present in each step; None where all must be."""
        return self._reducer.roll_call

    def decided(self) -> bool:
        """Whether the step that begins now is decided without this rank's gradients."""
        return self.roll_call is not None and self.roll_call.decided_after(self._step)

    def metrics(self) -> dict[str, float]:
        """Scalars to record of a step, by name, the same on all ranks."""
        return self._reducer.metrics()

    def signs(self, momentum: float = 0.0) -> Callable[[nn.Parameter], Tensor]:
        """Let a vote's outcomes stay packed, for ``Signum``, and gradients as they are; before the first step.

        Args:
            momentum: each rank votes the signs of its mean ``m <- momentum m + (1 - momentum) g``.

        Returns:
            What gives a parameter's signs of the last step, shape (ceil(n / 64),), int64; a set bit is minus.

        Raises:
            UnsupportedError: the exchange is no vote.
        """
        outcome = self._reducer.packed_signs(momentum)
        return lambda p: outcome(self._bucket_of[p], p)

    def norm(self) -> Tensor:
        """Euclidean norm over all gradients, as a float64 scalar."""
        values = [torch.view_as_real(b.values) if b.values.is_complex() else b.values for b in self.buckets]
        norms = [torch.linalg.vector_norm(v, dtype=torch.float64) for v in values]
        return torch.stack(norms).square().sum().sqrt() if norms else torch.zeros((), dtype=torch.float64)

    def scale(self, factor: float) -> None:
        """Multiply every gradient."""
        for bucket in self.buckets:
            bucket.values.mul_(factor)

    def planned_bytes(self) -> int:
        """Bytes that this rank sends in a step, at most."""
        size, rank = self._world.size, self._world.rank
        buckets_bytes = sum(self._reducer.planned_bytes(b, size, rank) for b in self.buckets)
        return buckets_bytes + self._reducer.finish_bytes(size, rank)

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
            self._note()

    def _require_same_schedule(self) -> None:
        """Ranks that would run other collectives than rank 0 must say so now, and not hang later. Collective."""
        kinds = [b.kind.model_dump() if isinstance(b.kind, Config) else b.kind for b in self.buckets]
        schedule = [
            f"{b.name}: {b.values.dtype}, {kind}, {dict(b.layout)}" for b, kind in zip(self.buckets, kinds, strict=True)
        ]
        digest = hashlib.blake2b("\n".join(schedule).encode(), digest_size=8).hexdigest()
        digests = self._world.gather_text(digest)
        different = [rank for rank, theirs in enumerate(digests) if theirs != digests[0]]
        if different:
            raise PeerError(
                f"ranks {different} would exchange other buckets than rank 0: do all ranks build the same model, "
                "from the same job file?"
            ).everywhere()

    def _require_all_virtual_ranks(self) -> None:
        if self._turn + 1 < self._turns:
            raise UnsupportedError(
                f"gradients of {self._turn + 1} virtual ranks are there, and this rank holds {self._turns}: call "
                "next_virtual_rank() after each but the last"
            )

    def _watch(self, p: nn.Parameter) -> None:
        """Learn when its gradient is complete, if anything is to go before ``finish``."""
        if self._thread is not None:
            self._hooks[p] = after_accumulation(p, self._ready)

    def _rearm(self, backwards: int) -> None:
        self._passes_left = dict.fromkeys(self._bucket_of, backwards)
        self._waiting_for = [len(bucket.views) for bucket in self.buckets]
        self._next = self._turn = 0
        self._under_way: list[Future[None]] = []

    def _ready(self, p: nn.Parameter) -> None:
        """A backward pass has finished the gradient of p."""
        if self._turn + 1 < self._turns:
            return  # next_virtual_rank takes all of them
        bucket = self._bucket_of[p]
        if not bucket.fits(p):
            return  # finish says so
        bucket.take(p)
        if self._lane is not None:
            self._lane.note()
        self._passes_left[p] -= 1
        if self._passes_left[p] < 0:
            raise HpcoptError(
                "a gradient changed after it was sent: tell exchange.zero(backwards=N) how many backward passes add "
                "up; after a step that was given up, begin the next one with exchange.zero()"
            )
        if self._passes_left[p] == 0:
            self._waiting_for[bucket.index] -= 1
            if not self._waiting_for[bucket.index]:
                self._send(self._next_incomplete())

    def _look_around(self) -> UnsupportedError | None:
        """Take in parameters and gradients that have changed without a backward pass; give what cannot be."""
        try:
            for old, new in self._parameters.follow():
                self._take_over(old, new)
        except UnsupportedError as error:
            return error
        for p, bucket in self._bucket_of.items():
            if bucket.index >= self._next:
                bucket.take(p)
            elif p.grad is not None and p.grad is not bucket.views[p]:
                return UnsupportedError("a gradient was replaced after it was sent: change gradients after finish()")
        self._note()
        return None

    def _note(self) -> None:
        """The current stream of a device has changed gradients."""
        if self._lane is not None:
            self._lane.note()

    def _take_over(self, old: nn.Parameter, new: nn.Parameter) -> None:
        bucket = self._bucket_of[old]
        bucket.replace(old, new)
        self._bucket_of = {new if p is old else p: b for p, b in self._bucket_of.items()}
        if old in self._hooks:
            self._hooks.pop(old).remove()
        self._watch(new)

    def _complete(self) -> None:
        """Exchange the step's other buckets, wait for all, and be ready for the next step, whatever went wrong."""
        try:
            self._send(len(self.buckets))
            self._run(self._finish_step)
            for future in self._under_way:
                future.result()
        except HpcoptError as error:
            if error.on_every_rank:  # all ranks go through the other buckets, too; else the job is at its end
                wait(self._under_way)
            raise
        finally:
            if self._lane is not None:
                self._lane.join()
            self._step += 1
            self._rearm(1)

    def _next_incomplete(self) -> int:
        waiting = self._waiting_for
        return next((k for k in range(self._next, len(waiting)) if waiting[k]), len(waiting))

    def _send(self, end: int) -> None:
        """Exchange the buckets up to ``end`` that are not yet under way."""
        while self._next < end:
            bucket = self.buckets[self._next]
            bucket.ready_s = time.perf_counter()
            self._next += 1
            self._run(partial(self._reduce, bucket))

    def _run(self, work: Callable[[], None]) -> None:
        work = work if self._lane is None else self._lane.behind(work)
        if self._thread is None:
            work()
        else:
            self._under_way.append(self._thread.submit(work))

    def _reduce(self, bucket: Bucket) -> None:
        dense_bytes = bucket.values.numel() * bucket.values.element_size()
        self._transport.traffic.dense_bytes += dense_all_reduce_bytes(dense_bytes, self._world.size)
        if self._adversary is not None:
            self._adversary.falsify(bucket, self._world.rank, self._step, self._seed)
        operation = self.choices.buckets[bucket.index].algorithm if self.choices else self._operation
        what = f"{operation} of {bucket.name}, step {self._step}: {bucket.values.numel()} x {bucket.values.dtype}"
        trace = self._trace(bucket.name, "exchange", step=self._step, values=bucket.values.numel())
        with trace, self._world.watch(what, self._world.ranks):
            if self._world.debug:
                require_same_call(self._transport, what)
            start_s = time.perf_counter()
            self._sum(self._transport, bucket, self._step)
            self._seconds[bucket.index] = time.perf_counter() - start_s
        if self._mean:
            bucket.values.div_(self._world.size if self._virtual is None else self._virtual.count)

    def _finish_step(self) -> None:
        with self._world.watch(f"{self._operation}, end of step {self._step}", self._world.ranks):
            self._reducer.finish_step(self._transport, self.buckets, self._step)

    def _count(self) -> None:
        """Hand on what the exchange's transport has counted."""
        self._transport.traffic.hand_on(self._world.traffic, self._clock)
