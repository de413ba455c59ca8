"""Stochastic gradient push, and its kin on undirected graphs: every rank steps on its own gradient and mixes its
parameters with a few neighbours' (Assran et al. 2019, arXiv:1811.10792, alg. 1).

With Push-Sum: ``x_i <- x_i - lr grad F_i(z_i)``; x and w are mixed; ``z_i = x_i / w_i``. The gradient is taken at z,
what the model holds; the optimizer moves x. No rank waits for all others, and the ranks' models differ while they
train; an evaluation is of their mean.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpcopt.comm import graphs
from hpcopt.comm.mixing import Choco, Metropolis, Mixer, PushSum
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport
from hpcopt.comm.warm_up import compile_once
from hpcopt.compress import QSGD, Codec
from hpcopt.errors import JobError, fitting
from hpcopt.families import CODECS
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import StepStats
from hpcopt.solvers.first_order import FirstOrder


class GossipConfig(SolverConfig, FirstOrder):
    """After every step of its own, each rank mixes its parameters with a few neighbours'. Nothing else is exchanged."""

    name: Literal["gossip"] = "gossip"
    mixing: Literal["push_sum", "metropolis", "choco"] = Field(
        "push_sum",
        description="push_sum: any graph; metropolis: undirected graphs; choco: metropolis with compressed differences",
    )
    graph: Literal["exponential", "ring", "random", "file"] = Field("exponential", description="who sends to whom")
    file: Path | None = Field(None, description='with graph = "file": one edge a line, source and target')
    tau: int = Field(0, ge=0, description="push_sum: steps after which a message is waited for")
    codec: Annotated[Codec, CODECS] = Field(QSGD(), description="choco: of the differences")
    gamma: float = Field(0.5, gt=0, le=1, description="choco: step of the mixing; less for coarser codecs")

    @model_validator(mode="after")
    def _fits(self) -> "GossipConfig":
        if (self.graph == "file") != (self.file is not None):
            raise ValueError('graph = "file" goes with file = PATH')
        if self.mixing != "push_sum" and self.graph in ("exponential", "random"):
            raise ValueError(f'mixing = "{self.mixing}" needs an undirected graph: graph = "ring", or a file')
        if self.tau and self.mixing != "push_sum":
            raise ValueError('tau goes with mixing = "push_sum"')
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def build(self, task: Task, context: Context) -> "GossipSgd":
        """Make the solver. Collective.

        Raises:
            JobError: the graph's file does not fit the ranks, or the model is not of float32.
        """
        return GossipSgd(self, task, context)

    def mixer(self, transport: Transport, x: Tensor, seed: int) -> Mixer:
        """Make the mixer of x, shape (n,), float32.

        Raises:
            JobError: the graph's file does not fit the ranks.
        """
        graph = self._graph(transport.size, seed)
        if self.mixing == "push_sum":
            return PushSum(transport, graph, x, self.tau)
        if self.mixing == "metropolis":
            return Metropolis(transport, graph, x)
        return Choco(transport, graph, x, self.codec, self.gamma, seed)

    def _graph(self, size: int, seed: int) -> graphs.Graph:
        if self.file is not None:
            return graphs.from_file(self.file, size)
        if self.graph == "random":
            return graphs.random(size, seed)
        return graphs.ring(size) if self.graph == "ring" else graphs.exponential(size)


class GossipSgd(Solver):
    """The solver."""

    def __init__(self, config: GossipConfig, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model = model = task.model
        world = context.world
        self.data_rank, self.data_size = world.rank, world.size
        self._config, self._loss, self._world, self._clock = config, task.loss, world, context.clock
        for tensor in model.state_dict().values():
            world.broadcast(tensor)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for p in parameters):
            raise JobError('[solver] name = "gossip" needs float32 parameters').everywhere()
        self._z = _flatten(parameters)
        self._transport = world.transport.duplicate()
        self._mixer = config.mixer(self._transport, self._z.clone(), context.seed("gossip"))
        if config.mixing == "choco" and self._transport.point_to_point:  # this is no rehearsal
            compile_once(world, config.codec.warm)
        self._optimizer = config.optimizer.build(parameters)
        self.pipelined = config.tau > 0
        self._steps, self._step = context.total_steps, 0

    def step(self, batch: Batch) -> StepStats:
        if self._mixer.step:
            self._mixer.estimate(self._z)
        self._optimizer.zero_grad()
        total = 0.0
        for micro in batch.split(self._config.accumulate):
            with self._clock("forward"):
                loss = self._loss(self.model, micro) * (len(micro) / len(batch))
            with self._clock("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item() * batch.weight
        with self._clock("update"):
            lr = self._update()
        with self._clock("exchange"), self._world.watch(f"gossip of step {self._step}", self._world.ranks):
            self._mixer.mix()
        self._count()
        self._step += 1
        return StepStats(total, lr)

    def gather(self) -> None:
        """Put the mean over the ranks into the model; the next step goes on from this rank's own. Collective."""
        self._mixer.drain()
        self._world.all_reduce(self._z.copy_(self._mixer.x))
        weights = self._world.all_reduce(torch.tensor([self._mixer.weight], dtype=torch.float64))
        self._z.div_(float(weights))

    def plan(self, flops: float) -> dict[str, str]:
        return {
            "parameters": f"{self._z.numel():,}",
            "bytes a step": f"{self._mixer.planned_bytes(self._world.rank):,} sent by each rank for the parameters",
        }

    def state_dict(self) -> Tree:
        return {"step": self._step, "model": self.model.state_dict()}

    def rank_state_dict(self) -> Tree:
        mixer = self._mixer
        mixing = {"x": mixer.x, "weight": mixer.weight, "step": mixer.step}
        if isinstance(mixer, Choco):
            mixing["copies"] = {str(rank): tensor for rank, tensor in mixer.copies.items()}
        return {"mixing": mixing, "optimizer": optimizer_state(self._optimizer)}

    def load_state_dict(self, shared: Tree, parts: Sequence[Tree]) -> None:
        """With another number of ranks than saved, all go on from the mean."""
        with fitting("the job's model or optimizer"):
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            own = parts[self._world.rank % len(parts)]
            restore_optimizer(self._optimizer, own["optimizer"])
            if len(parts) == self._world.size:
                self._resume(own["mixing"])
            else:
                self._mixer.x.copy_(self._z)
            self._step = shared["step"]

    def _resume(self, mixing: Tree) -> None:
        self._mixer.weight, self._mixer.step = mixing["weight"], mixing["step"]
        self._mixer.x.copy_(mixing["x"])
        if isinstance(self._mixer, Choco):
            for rank, tensor in self._mixer.copies.items():
                tensor.copy_(mixing["copies"][str(rank)])

    def _update(self) -> float:
        """Move x by the gradient at z."""
        if self._config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        lr = self._config.learning_rate(self._step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._z.copy_(self._mixer.x)
        self._optimizer.step()
        self._mixer.x.copy_(self._z)
        return lr

    def _count(self) -> None:
        counts = self._transport.traffic.lap()
        counts.dense_bytes = dense_all_reduce_bytes(4 * self._z.numel(), self._world.size)
        self._world.traffic.add(counts)
        self._clock.add("encode", counts.encode_s)
        self._clock.add("comm", counts.wire_s)
        self._clock.add("decode", counts.decode_s)


def _flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Make the parameters views of one flat tensor, and give it."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]) if parameters else torch.empty(0)
    pieces = torch.split(flat, [p.numel() for p in parameters])
    for p, piece in zip(parameters, pieces, strict=True):
        p.data = piece.view_as(p)
    return flat
