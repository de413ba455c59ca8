"""Asynchronous model parallelism: AMPNet (Gaunt et al. 2017, arXiv:1705.09786).

A network is a static graph of nodes, placed on ranks. Instances pass through it, each on its own way, as messages that
carry their state; ``max_active_keys`` of them are in flight. The gradient comes back by the way that the values went. A
node steps by its own optimizer as soon as it has gradients of ``min_update_frequency`` instances, without a barrier, so
an instance may meet parameters on its way back that are not those of its way there: stale by as many updates as came
between. With one instance in flight nothing is stale, and the whole is sequential SGD, one instance a step.

Rank 0 lets instances in, and counts the answers to their first messages: when all have come, an instance has landed.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.dataflow.graph import Wired
from hpcopt.dataflow.instance import Instance
from hpcopt.dataflow.tracing import graph_of
from hpcopt.errors import CheckpointError, fitting
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree, optimizer_tensors
from hpcopt.shapes.stats import Scalar, StepStats
from hpcopt.solvers.amp.engine import Engine
from hpcopt.solvers.amp.feed import Feed
from hpcopt.solvers.amp.learner import Learner
from hpcopt.solvers.amp.placement import first_name, place
from hpcopt.solvers.amp.post import Kind, Letter, Post
from hpcopt.solvers.amp.staleness import StalenessTable
from hpcopt.solvers.first_order import Scheduled


class AmpConfig(SolverConfig, Scheduled):
    """Nodes of a network on ranks, instances in flight between them, and steps of each node on its own."""

    name: Literal["amp"] = "amp"
    max_active_keys: int = Field(
        4, ge=1, description="instances in flight at a time; 1 waits for each, as sequential SGD does"
    )
    min_update_frequency: int = Field(
        1, ge=1, description="instances whose mean gradient a node steps by, as soon as it has them"
    )
    replicas: int = Field(
        1,
        ge=1,
        description="copies of every node, on ranks of their own, which instances pass through in turn; they are "
        "averaged at evaluations and checkpoints",
    )
    place: dict[str, int] = Field(
        {}, description="ranks of nodes by name, among those of a replica; by default about as many parameters each"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def build(self, task: Task, context: Context) -> "Amp":
        """Make the solver. Collective.

        Raises:
            JobError: the model cannot be made a graph of nodes, the loss cannot be taken apart, or the ranks do not
            suit the replicas.
        """
        return Amp(self, task, context)


class Amp(Solver):
    """The solver, on a rank that holds some of the nodes.

    Scalars of a step: ``in_flight``, the most instances so far in it; ``messages`` between ranks, and the ``longest``
    queue of messages that waited for a rank's nodes. The table ``staleness`` is a histogram for each node.
    """

    lockstep = False

    def __init__(self, config: AmpConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model, self._config, self._world, self._clock = task.model, config, context.world, context.clock
        self.data_rank, self.data_size = 0, 1  # rank 0 lets instances in
        self.pipelined = config.max_active_keys > 1 or config.replicas > 1
        world = context.world
        world.start_alike(list(self.model.state_dict().values()), True)
        self._feed = Feed(task.loss)
        self._models = [self.model, *(copy.deepcopy(self.model) for _ in range(config.replicas - 1))]
        self.graph = graph_of(self._models, self._feed.criterion)
        self._owners = place(self.graph, world.size, config.place)
        self._post = Post(world, context.device)
        self._engine = Engine(self.graph, self._owners, world, self._post)
        self._steps, self._step, self._begun, self._batch = context.total_steps, 0, 0, 1
        self._waiting = deque[Instance]()
        own = [node for number, node in self.graph.transforms().items() if self._owners[number] == world.rank]
        self._learners = {
            node.name: Learner(node, config.optimizer.build(node.parameters), config.min_update_frequency, self._rate)
            for node in own
        }
        self._staleness = StalenessTable(own)
        self._most_in_flight = 0

    def step(self, batch: Any) -> StepStats:
        """Let a batch's instances in, as others land. Without a barrier: some are in flight when it returns."""
        self._batch = max(1, len(batch))
        self._feed.look_at(batch)
        source, sent_before = self.graph.source, self._post.sent
        source.landed.clear()
        self._engine.longest, self._most_in_flight = 0, source.in_flight
        with self._clock("forward"):
            if self._world.rank == 0:
                self._waiting.extend(self._feed.instances(batch))
                self._land(self._config.max_active_keys - 1)
                self._tell(Kind.STEP)
            else:
                self._serve(Kind.STEP)
        losses = [float(loss) for _, (loss,) in source.landed if loss is not None]
        rate = self._config.learning_rate(self._step, self._steps)
        self._step += 1
        scalars = {
            "in_flight": Scalar(self._most_in_flight, "max"),
            "longest_queue": Scalar(self._engine.longest, "max"),
            "messages": Scalar(self._post.sent - sent_before, "sum"),
        }
        loss = sum(losses) / len(losses) if losses else None
        return StepStats(loss, rate, scalars, {"staleness": self._staleness})

    def gather(self) -> None:
        """Let all instances land; then every node's parameters, or the mean of its replicas', go to all. Collective."""
        if self._world.rank == 0:
            self._land(0)
            self._tell(Kind.DRAINED)
        else:
            self._serve(Kind.DRAINED)
        self._post.flush()
        if self.graph.remembered:
            raise RuntimeError(f"{self.graph.remembered} messages are left after the last instance landed")
        for number, node in self.graph.transforms().items():
            assert node.module is not None
            for tensor in node.module.state_dict().values():
                self._world.broadcast(tensor, self._owners[number])
        if len(self._models) > 1:
            average(self._models)

    def _land(self, most: int) -> None:
        """Let in what waits, and work until at most so many are in flight."""
        source = self.graph.source
        while self._waiting or source.in_flight > most:
            while self._waiting and source.in_flight < self._config.max_active_keys:
                self._begin(self._waiting.popleft())
            self._engine.receive(wait=True)
            self._engine.turn()

    def _begin(self, instance: Instance) -> None:
        shape = self.model.graph_shape(instance.inputs) if isinstance(self.model, Wired) else ()
        self._engine.put(0, self.graph.source.begin(self._begun, shape, instance))
        self._begun += 1
        self._most_in_flight = max(self._most_in_flight, self.graph.source.in_flight)

    def _serve(self, until: Kind) -> None:
        """Work until rank 0 says so; what is still to do then waits for the next time."""
        while self._engine.receive(wait=True) is not until:
            self._engine.turn()

    def _tell(self, kind: Kind) -> None:
        for rank in range(1, self._world.size):
            self._post.send(rank, Letter(kind))

    def _rate(self, instance: int) -> float:
        """The learning rate of an instance's step."""
        return self._config.learning_rate(min(instance // self._batch, self._steps - 1), self._steps)

    def must_be_finite(self) -> Iterator[tuple[str, Tensor]]:
        yield from super().must_be_finite()
        for learner in self._learners.values():
            yield from optimizer_tensors(learner.optimizer)

    def plan(self, flops: float) -> dict[str, str]:
        graph, config = self.graph, self._config
        parts = {graph.nodes[number].name: self._owners[number] for number in graph.transforms()}
        crossing = sum(self._owners[a] != self._owners[b] for (a, _), (b, _) in graph.next.items())
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "nodes": f"{len(graph.nodes)}; with parameters, by rank: {parts}",
            "wires": f"{len(graph.next)}, of which {crossing} lead to another rank",
            "in flight": f"{config.max_active_keys} instances, {config.replicas} replicas of every node",
        }

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        """Of this rank's nodes, as of ``gather``: with nothing in flight. Rank 0 alone counts instances."""
        return {
            "instances": self._begun,
            "nodes": {name: learner.state_dict() for name, learner in self._learners.items()},
        }

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """The nodes may have stood on other ranks. A replica that was not there takes up the first one's state."""
        with fitting("the job's model"), torch.no_grad():
            for model in self._models:
                model.load_state_dict(shared["model"])
            self._step, self._begun = shared["step"], parts[0]["instances"]
            for name, learner in self._learners.items():
                learner.load_state_dict(_found(parts, name))


def _found(parts: Sequence[Tree], name: str) -> Tree:
    """A node's state, in whichever rank's part it is."""
    for wanted in (name, first_name(name)):
        for part in parts:
            if wanted in part["nodes"]:
                return part["nodes"][wanted]
    raise CheckpointError(f"the checkpoint does not fit the job's model: it has no node {name!r}")


@torch.no_grad()
def average(models: Sequence[nn.Module]) -> None:
    """Put the mean of several models' parameters, and of their other numbers, into all of them."""
    for tensors in zip(*(model.state_dict().values() for model in models), strict=True):
        if tensors[0].is_floating_point():
            mean = torch.stack(tensors).mean(0)
            for tensor in tensors:
                tensor.copy_(mean)
