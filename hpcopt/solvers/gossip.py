"""Stochastic gradient push, and its kin on undirected graphs: every rank steps on its own gradient and mixes its
parameters with a few neighbours' (Assran et al. 2019, arXiv:1811.10792, alg. 1).

With Push-Sum: ``x_i <- x_i - lr grad F_i(z_i)``; x and w are mixed; ``z_i = x_i / w_i``. The gradient is taken at z,
what the model holds; the optimizer moves x. No rank waits for all others, and the ranks' models differ while they
train; an evaluation is of their mean.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcopt.comm.gossip import Choco
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.warm_up import compile_once
from hpcopt.errors import CheckpointError, JobError
from hpcopt.exchange.gossip import GossipConfig
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.shapes.batch import Batch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, StepStats, Task, Tree
from hpcopt.solvers.first_order import FirstOrder


class GossipSgd(Solver):
    """The solver."""

    def __init__(self, config: FirstOrder, task: Task, context: Context) -> None:
        """Start from rank 0's parameters. Collective."""
        self.model = model = task.model
        world, exchange = context.world, context.exchange
        self.data_rank, self.data_size = world.rank, world.size
        self._config, self._loss, self._world, self._clock = config, task.loss, world, context.clock
        if not isinstance(exchange, GossipConfig):
            raise JobError(f'[exchange] name = "{exchange.name}" does not mix parameters').everywhere()
        for tensor in model.state_dict().values():
            world.broadcast(tensor)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for p in parameters):
            raise JobError('[exchange] name = "gossip" needs float32 parameters').everywhere()
        self._z = _flatten(parameters)
        self._transport = world.transport.duplicate()
        self._mixer = exchange.build(self._transport, self._z.clone())
        if exchange.mixing == "choco" and self._transport.point_to_point:  # this is no rehearsal
            compile_once(world, exchange.codec.warm)
        self._optimizer = config.optimizer.build(parameters)
        self.pipelined = exchange.tau > 0
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
        try:
            with torch.no_grad():
                self.model.load_state_dict(shared["model"])
            own = parts[self._world.rank % len(parts)]
            restore_optimizer(self._optimizer, own["optimizer"])
            if len(parts) == self._world.size:
                self._resume(own["mixing"])
            else:
                self._mixer.x.copy_(self._z)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the job's model or optimizer: {error}") from error
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
