"""Training on one whole graph that is spread over the ranks.

Every rank has some of the nodes (``hpcopt.models.graph.partition``), their features and activations; the parameters
all have. At each layer that looks at neighbours, ranks exchange the rows at their borders, and in the backward pass the
gradients of these. Gradients of parameters are summed as in data parallelism, by the job's exchange. With dense halos
it is the training of one process, but for rounding.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from hpcopt.compress import Codec
from hpcopt.config import Config
from hpcopt.errors import JobError, fitting
from hpcopt.families import CODECS
from hpcopt.models.graph.graph import Graph
from hpcopt.models.graph.partition import Method, partition
from hpcopt.shapes.context import Context
from hpcopt.shapes.graph_batch import GraphBatch
from hpcopt.shapes.solver import Task, Tree
from hpcopt.shapes.stats import Scalar, StepStats
from hpcopt.solvers.data_parallel import DataParallel, DataParallelConfig
from hpcopt.solvers.full_graph.halo import Halo, damping
from hpcopt.solvers.full_graph.part import GraphPart, PartBatch
from hpcopt.store.saved_parts import SavedParts


class HaloConfig(Config):
    """How rows of neighbours travel."""

    codec: Annotated[Codec, CODECS] | None = Field(
        None, description="of their changes since the last exchange; off: rows travel as they are"
    )
    every: int = Field(1, ge=1, description="steps from one exchange to the next; between, rows are as they last came")


class FullGraphConfig(DataParallelConfig):
    """Any torch optimizer on one graph whose nodes are spread over the ranks."""

    name: Literal["full_graph"] = "full_graph"  # type: ignore[assignment]
    halo: HaloConfig = Field(HaloConfig(), description="how rows of neighbours travel")
    partition: Method = Field("greedy", description="how nodes are dealt out: metis needs pymetis")

    @model_validator(mode="after")
    def _one_pass_a_step(self) -> Self:
        if self.accumulate > 1:
            raise ValueError("a step goes through the graph once: leave accumulate out")
        if self.optimizer.asks != {"gradient"}:
            raise ValueError(f'optimizer "{self.optimizer.name}" asks for more than gradients')
        return self

    def build(self, task: Task, context: Context) -> "FullGraph":
        """Make the solver. Collective.

        Raises:
            JobError: the codec of the halos cannot be fed back.
        """
        return FullGraph(self, task, context)


class FullGraph(DataParallel):
    """The solver."""

    def __init__(self, config: FullGraphConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        super().__init__(config, task, context)
        self.data_rank, self.data_size = 0, 1  # all see the batch, and each takes what its nodes are
        self._world, self._method = context.world, config.partition
        if config.halo.codec is not None:
            damping(config.halo.codec, 1 << 16)
        self._halo = Halo(context.world, config.halo.codec, config.halo.every, context.seed("halo"), context.clock)
        self._whole: Graph | None = None

    def step(self, batch: Any) -> StepStats:
        self._halo.begin(self._step)
        stats = super().step(self._mine(batch))
        return replace(stats, scalars={**stats.scalars, "halo_bytes": Scalar(self._halo.lap(), "sum")})

    def _mine(self, batch: Any) -> PartBatch:
        """What of a batch is this rank's."""
        if not isinstance(batch, GraphBatch):
            raise JobError(
                'full_graph trains on the nodes of a graph: [workload] name = "node_classification"'
            ).everywhere()
        if self._whole is None:
            self._take(batch)
        if batch.graph is not self._whole:
            raise JobError("full_graph needs one graph for all steps: leave [workload] clusters out").everywhere()
        place = self._place[batch.targets]
        mine = place >= 0
        return PartBatch(self._part, self._features, place[mine], batch.labels[mine], batch.global_size)

    def _take(self, batch: GraphBatch) -> None:
        """Take this rank's nodes of the graph that all steps are on."""
        self._whole, world = batch.graph, self._world
        indptr, indices = (x.cpu().numpy() for x in (batch.graph.indptr, batch.graph.indices))
        of = partition(indptr, indices, world.size, self._method)
        self._part = GraphPart(batch.graph, of, world.rank, self._halo)
        self._features = batch.features[self._part.nodes]
        self._place = torch.full((len(batch.graph),), -1, device=batch.targets.device)
        self._place[self._part.nodes] = torch.arange(len(self._part), device=batch.targets.device)

    def rank_state_dict(self) -> Tree:
        return {**super().rank_state_dict(), "halo": self._halo.state_dict()}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """On another number of ranks the next halos are dense."""
        super().load_state_dict(shared, parts)
        self._halo.forget()
        if len(parts) == self._world.size:
            with fitting("the job's halos"):
                self._halo.load_state_dict(SavedParts.of(parts)[self._world.rank]["halo"])
