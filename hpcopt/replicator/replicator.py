"""One step function on one rank or many (TF-Replicator: Buchlovsky et al. 2019, arXiv:1902.00465).

The user writes the step of one replica. The replicator runs it on every replica, each with its part of the batch; where
replicas must know of each other, the step calls a collective. The same step runs

- alone: one rank;
- synchronously: M replicas, one gradient;
- asynchronously: sync groups of M replicas each, and a rank that holds the parameters (``hpcopt.replicator.server``);

and a replica may be one rank or several (``hpcopt.replicator.devices``).

    replicator = Replicator()
    model = build_model()
    optimizer = replicator.wrap_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def step(batch):
        images, classes = batch
        loss = cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return replicator.all_mean(loss.detach())

    losses = replicator.run(step, batches)
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from torch.optim import Optimizer

from hpcopt.comm.world import World, alone, connect
from hpcopt.errors import JobError
from hpcopt.exchange import ExchangeConfig, RingConfig
from hpcopt.replicator import mapping
from hpcopt.replicator.calls import Calls
from hpcopt.replicator.collectives import Collectives, Op
from hpcopt.replicator.devices import LogicalDevice
from hpcopt.replicator.optimizer import Wrapped, carry_state, replace_step
from hpcopt.replicator.server import Client, Server
from hpcopt.replicator.tree import Tree, describe

Item = TypeVar("Item")
Result = TypeVar("Result")
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class Replicator(Collectives):
    """What one rank knows of its replica and of the others.

    Attributes:
        world: all ranks.
        replica_id: this replica's place in its sync group.
        num_replicas_in_sync: replicas whose gradients make one step, M.
        sync_group: which group this rank is of.
        num_sync_groups: 1, unless the groups are asynchronous.
        serves: this rank holds the parameters and runs no steps; to the script it looks like replica 0 of group 0.
        staleness: after an asynchronous ``run``: how many updates had which staleness, over all groups.
    """

    def __init__(
        self,
        world: World | None = None,
        *,
        sync_groups: int | None = None,
        devices_per_replica: int = 1,
        check: int | None = None,
    ) -> None:
        """Find this rank's place. Collective: over all ranks.

        Args:
            world: the ranks; by default all of the job, or this process alone.
            sync_groups: run so many groups asynchronously, with the last rank as their server; None: one group, in
                step.
            devices_per_replica: neighbouring ranks that one replica is spread over, N.
            check: compare only the first so many calls between ranks; None: all. Later differences may hang, and a rank
                that leaves is then named by the stall watch alone.

        Raises:
            JobError: the ranks cannot be grouped so.
        """
        self.world = world = connect() if world is None else world
        self.num_sync_groups = 1 if sync_groups is None else sync_groups
        workers = world.size - (sync_groups is not None)
        ranks_in_sync = _divided(workers, self.num_sync_groups, devices_per_replica, sync_groups is not None)
        self.num_replicas_in_sync = ranks_in_sync // devices_per_replica
        self.serves = sync_groups is not None and world.rank == workers
        self.sync_group, place = divmod(0 if self.serves else world.rank, ranks_in_sync)
        self.replica_id, device = divmod(place, devices_per_replica)
        self.staleness: Counter[int] = Counter()
        self._world_calls = Calls(world, check)
        group = world
        if sync_groups is not None:
            group = world.split(self.num_sync_groups if self.serves else self.sync_group, world.rank)
        self._group_calls = Calls(group, check) if sync_groups is not None else self._world_calls
        self._devices = devices_per_replica
        spread = devices_per_replica > 1
        super().__init__(group.split(device, group.rank) if spread else group, self._group_calls)
        self._replica = group.split(self.replica_id, group.rank) if spread else alone()
        self._server, self._client = None, None
        if sync_groups is not None:
            messages = world.transport.duplicate()
            if self.serves:
                self._server = Server(messages, range(0, workers, ranks_in_sync))
            else:
                self._client = Client(messages, group, server=workers)
        self._wrapped: list[Wrapped] = []

    def run(self, step: Callable[[Item], Result], batches: Iterable[Item]) -> list[Result]:
        """Call ``step`` for each of the batches, and give what it gave. Collective: over all ranks.

        All ranks of a sync group must get as many batches. At the end of an asynchronous run all ranks have the
        server's parameters; a rank that serves gives an empty list.

        Raises:
            PeerError: on all other ranks, when a rank leaves early or calls something else: who, and why.
        """
        if self._client is None and self._server is None:
            return self._steps(step, batches)
        results: list[Result] = []
        with self._world_calls.stay("the asynchronous run"):
            if self._server is not None:
                self._server.serve()
            elif self._client is not None:
                with self._client.present():
                    results = self._steps(step, batches)
        self._settle()
        return results

    def wrap_optimizer(self, optimizer: AnyOptimizer, exchange: ExchangeConfig | None = None) -> AnyOptimizer:
        """Let every ``step`` of the optimizer first average the gradients over the replicas; give the optimizer back.
        Collective: over all ranks, which from here on have replica 0's parameters.

        A parameter that no backward pass has reached counts as a zero gradient.

        Args:
            exchange: how gradients travel, ``TwoPhaseConfig(codec=QSGD(bits=4))`` for instance; by default exactly.
                They travel in ``step``, not beside the backward pass.

        Raises:
            PeerError: on all ranks: their optimizers have other parameters.
        """
        index, groups = len(self._wrapped), optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        shapes = f" of {describe(parameters)}" if self._devices == 1 else ""
        self._world_calls.agree(f"wrap_optimizer {index}{shapes}")
        if self.num_sync_groups > 1 or self._client is not None or self._server is not None:
            self.world.start_alike(parameters, broadcast=True)
        wrapped = Wrapped(optimizer, index, self._replicas, exchange or RingConfig())
        self._wrapped.append(wrapped)
        carry_state(wrapped, self.world, self._replicas)
        if self._server is not None:
            self._server.optimizers.append(wrapped)
        else:
            update = partial(self._client.update, wrapped) if self._client is not None else wrapped.apply
            replace_step(wrapped, self._group_calls, update)
        return optimizer

    def map_gather(self, items: Sequence[Item], fn: Callable[[Item], Tree]) -> list[Tree]:
        """Give ``[fn(item) for item in items]`` on every replica, each computed by one: item i by replica i mod M.
        Collective, and differentiable.

        Cost: the comparison of the calls, a description of the results, and one all-gather of the longest share for
        each dtype in the results. They are in main memory and may be of unlike forms, but not named tuples; ``fn`` must
        not call collectives.
        """
        return mapping.map_gather(self._replicas, self._group_calls, items, fn)

    def map_reduce(self, fn: Callable[[Item], Tree], items: Sequence[Item], op: Op = "sum") -> Tree:
        """Reduce ``fn(item)`` over all items, bit-equal on every replica, each computed by one: item i by replica i
        mod M. Collective, and differentiable.

        Cost: the comparison of the calls and one all-reduce for each dtype. All results must be of one form.

        Raises:
            JobError: there are no items.
        """
        return mapping.map_reduce(self._replicas, self._group_calls, self, fn, items, op)

    def per_replica_batch_size(self, batch: int) -> int:
        """A replica's part of a batch over all replicas in sync.

        Raises:
            JobError: on all ranks: it cannot be dealt evenly.
        """
        each, left = divmod(batch, self.num_replicas_in_sync)
        if left or not each:
            below, above = (n * self.num_replicas_in_sync for n in (each, each + 1))
            fits = f"{below} or {above}" if below else f"{above}"
            raise JobError(
                f"a batch of {batch} cannot be dealt evenly to {self.num_replicas_in_sync} replicas; one of {fits} can"
            ).everywhere()
        return each

    def logical_device(self, index: int) -> LogicalDevice:
        """Device ``index`` of this replica: rank ``index mod N`` of its ranks, so that a step written for several
        devices runs on fewer.
        """
        return LogicalDevice(self._replica, self._group_calls, index % self._devices)

    def _steps(self, step: Callable[[Item], Result], batches: Iterable[Item]) -> list[Result]:
        results: list[Result] = []
        with self._group_calls.stay("run") as told:
            told.append("after 0 steps")
            for batch in batches:
                results.append(step(batch))
                told[0] = f"after {len(results)} steps"
        return results

    def _settle(self) -> None:
        """Give all ranks what the server has. Collective: over all ranks."""
        server = self.world.size - 1
        for wrapped in self._wrapped:
            wrapped.set_parameters([self.world.broadcast(flat, server) for flat in wrapped.flat_parameters()])
        counts = self._server.staleness if self._server is not None else Counter[int]()
        numbers = self.world.broadcast_integers([n for pair in sorted(counts.items()) for n in pair], server)
        self.staleness = Counter(dict(zip(numbers[::2], numbers[1::2], strict=True)))


def _divided(workers: int, sync_groups: int, devices: int, served: bool) -> int:
    """Ranks in each sync group.

    Raises:
        JobError: on all ranks.
    """
    if devices < 1 or sync_groups < 1:
        raise JobError(f"sync_groups = {sync_groups}, devices_per_replica = {devices}: both begin at 1").everywhere()
    if served and devices > 1:
        raise JobError("a server holds whole replicas: use devices_per_replica = 1 with sync_groups").everywhere()
    each, left = divmod(workers, sync_groups * devices)
    if left or not each:
        others, unit = " beside the server" if served else "", sync_groups * devices
        fits = " or ".join(str(n * unit + served) for n in (each, each + 1) if n)
        raise JobError(
            f"{workers} ranks{others} are not {sync_groups} sync groups of replicas of {devices} ranks: start {fits}"
        ).everywhere()
    return each * devices
