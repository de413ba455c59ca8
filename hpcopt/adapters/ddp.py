"""An exchange inside torch's DistributedDataParallel, as its communication hook.

    model = DistributedDataParallel(network)
    model.register_comm_hook(DdpExchange(network, TwoPhaseConfig(codec=QSGD(bits=4))), ddp_hook)

DDP decides which gradients travel together and when; what they become on the way is the exchange's. Buckets are reduced
by a thread, over a process group of their own, while the backward pass goes on. DDP makes its buckets anew after the
first step: what error feedback owes goes by the parameters' names.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpcopt.comm.nccl import beside
from hpcopt.comm.process_group import ProcessGroupTransport
from hpcopt.comm.world import World
from hpcopt.errors import NonFiniteError, UnsupportedError
from hpcopt.exchange import Bucket, ExchangeConfig
from hpcopt.exchange.bucket import make_buckets
from hpcopt.exchange.lane import lane_for
from hpcopt.exchange.reducer import Tree
from hpcopt.store.saved_parts import SavedParts

WHOLE = 1 << 62  # bytes: a bucket of DDP's is cut by the kind of its parameters alone
Pieces = list[tuple[Bucket, list[nn.Parameter]]]


class DdpExchange:
    """The state of the hook: how gradients travel, and what is kept between steps."""

    def __init__(
        self, model: nn.Module, config: ExchangeConfig, *, group: dist.ProcessGroup | None = None, seed: int = 0
    ) -> None:
        """Make a process group for the exchange. Collective: over the group's ranks.

        Args:
            model: the network inside of the ``DistributedDataParallel``.
            config: how gradients travel; sums become means over the ranks, as DDP's do.
            group: the one that DDP was given; None: all ranks.
            seed: of all that codecs draw at random, the same on all ranks.

        Raises:
            UnsupportedError: the exchange chooses for buckets that it must know beforehand, or falsifies gradients.
            LaunchError: there is no process group.
        """
        if config.name == "auto" or config.adversary is not None:
            raise UnsupportedError("DDP makes its buckets anew after a step: no 'auto' and no adversary in its hook")
        self._mean = config.gives == "sums"
        self._reducer = config.build(seed)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._place = {p: (place, name) for place, (name, p) in enumerate(named)}
        self._known: dict[tuple[str, ...], Pieces] = {}
        self._lane, self._sum = lane_for([p for _, p in named]), self._reducer.reduce
        if self._lane is not None:
            self._sum = partial(self._lane.reduce, self._reducer)
        device = next((p.device for _, p in named), torch.device("cpu"))
        self._transport = beside(ProcessGroupTransport(group), device)
        self._reducer.prepare(World(self._transport), self._transport, [])
        self._thread = ThreadPoolExecutor(1, "exchange")
        self._step, self._buckets, self._under_way = 0, list[Bucket](), list[Future[None]]()

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has sent."""
        return self._transport.traffic.sent_bytes

    def reduce(self, flat: Tensor, parameters: Sequence[nn.Parameter], last: bool) -> torch.futures.Future[Tensor]:
        """Begin to make of one bucket of DDP's its mean over the ranks.

        Args:
            flat: the gradients, shape (n,), side by side in the order of the parameters; replaced.
            last: of a step.

        Returns:
            What gives ``flat``. A gradient that is not finite on one rank is NaN on all of them.
        """
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=None if flat.is_cpu else [flat.device])
        work: Callable[[], None] = partial(self._begin, flat, parameters, last, done)
        if self._lane is not None:
            self._lane.note()
            work = self._lane.behind(work)
        self._under_way.append(self._thread.submit(work))
        if last:  # nothing is left to go beside: what went wrong in the step is raised here, where it is seen
            under_way, self._under_way = self._under_way, []
            try:
                for part in under_way:
                    part.result()
            finally:
                if self._lane is not None:
                    self._lane.join()
        return done

    def rank_state_dict(self) -> Tree:
        """This rank's own state (residuals, momentum), by parameter name. Between steps."""
        return {"step": self._step, "reducer": self._reducer.state_dict()}

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        """Take over the states of all ranks that saved; there may be more or fewer than now."""
        if len(parts):
            rank, size = self._transport.rank, self._transport.size
            self._step = parts[rank % len(parts)]["step"]
            self._reducer.load_state_dict(SavedParts.of(parts).under("reducer"), rank, size)

    def _begin(
        self, flat: Tensor, parameters: Sequence[nn.Parameter], last: bool, done: torch.futures.Future[Tensor]
    ) -> None:
        try:
            self._reduce(flat, parameters, last)
        finally:
            done.set_result(flat)  # in the lane's stream, behind which DDP goes on

    def _reduce(self, flat: Tensor, parameters: Sequence[nn.Parameter], last: bool) -> None:
        places = dict(zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True))
        for bucket, members in self._pieces(parameters):
            for p in members:
                bucket.views[p].copy_(places[p].view_as(p))
            try:
                self._sum(self._transport, bucket, self._step)
            except NonFiniteError as error:
                if not error.on_every_rank:
                    raise  # else the values are NaN on all ranks, as they are after a sum of DDP's own
            if self._mean:
                bucket.values.div_(self._transport.size)
            for p in members:
                places[p].copy_(bucket.views[p].view(-1))
            self._buckets.append(bucket)
        if last:
            self._reducer.finish_step(self._transport, self._buckets, self._step)
            self._step, self._buckets = self._step + 1, []

    def _pieces(self, parameters: Iterable[nn.Parameter]) -> Pieces:
        """The buckets, each of one kind, for what DDP has put into one of its own; in the order of the model, from the
        end, whatever order DDP has them in.
        """
        named = sorted((*self._place[p], p) for p in parameters)
        key = tuple(name for _, name, _ in named)
        if key not in self._known:
            made = make_buckets([(name, p) for _, name, p in named], WHOLE, self._reducer.kind, self._reducer.grain)
            for index, bucket in enumerate(made, sum(map(len, self._known.values()))):
                bucket.index = index
            self._known[key] = [(bucket, list(bucket.views)) for bucket in made]
        return self._known[key]


def ddp_hook(  # DDP looks at these very types
    state: DdpExchange,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """For ``DistributedDataParallel.register_comm_hook``."""
    return state.reduce(bucket.buffer(), bucket.parameters(), bucket.is_last())
