"""A flat tensor that each rank mixes with its neighbours': what a job may say of it, and its state in a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hpcopt.comm import graphs
from hpcopt.comm.mixing import Choco, Metropolis, Mixer, PushSum
from hpcopt.comm.traffic import dense_all_reduce_bytes
from hpcopt.comm.transport import Transport
from hpcopt.comm.warm_up import compile_once
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, Codec
from hpcopt.config import Config
from hpcopt.families import CODECS
from hpcopt.phases import PhaseClock


class MixingConfig(Config):
    """How ranks mix, and with whom."""

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
    def _fits(self) -> Self:
        if (self.graph == "file") != (self.file is not None):
            raise ValueError('graph = "file" goes with file = PATH')
        if self.mixing != "push_sum" and self.graph in ("exponential", "random"):
            raise ValueError(f'mixing = "{self.mixing}" needs an undirected graph: graph = "ring", or a file')
        if self.tau and self.mixing != "push_sum":
            raise ValueError('tau goes with mixing = "push_sum"')
        return self

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


class Mixture:
    """The tensor with its mixer, over a transport of its own.

    Attributes:
        x: shape (n,), float32: this rank's values, changed in place.
    """

    def __init__(self, config: MixingConfig, world: World, x: Tensor, seed: int, clock: PhaseClock) -> None:
        """Mix x from now on. Collective."""
        self._world, self._clock = world, clock
        self._transport = world.transport.duplicate()
        self._mixer = config.mixer(self._transport, x, seed)
        if config.mixing == "choco" and self._transport.point_to_point:  # this is no rehearsal
            compile_once(world, config.codec.warm)

    @property
    def x(self) -> Tensor:
        return self._mixer.x

    def estimate(self, out: Tensor) -> Tensor:
        """Write what x stands for to out."""
        return self._mixer.estimate(out) if self._mixer.step else out.copy_(self.x)

    def mix(self, what: str) -> None:
        """One round. Collective: over a rank's neighbours.

        Args:
            what: for messages of a stall.
        """
        with self._clock("exchange"), self._world.watch(what, self._world.ranks):
            self._mixer.mix()
        traffic = self._transport.traffic
        traffic.dense_bytes = dense_all_reduce_bytes(4 * self.x.numel(), self._world.size)
        traffic.hand_on(self._world.traffic, self._clock)

    def mean(self, out: Tensor) -> Tensor:
        """Write the mean over the ranks to out, with nothing left under way. Collective."""
        self._mixer.drain()
        self._world.all_reduce(out.copy_(self.x))
        weights = self._world.all_reduce(torch.tensor([self._mixer.weight], dtype=torch.float64))
        return out.div_(float(weights))

    def planned_bytes(self) -> int:
        """Bytes that this rank sends in a round, on average."""
        return self._mixer.planned_bytes(self._world.rank)

    def rank_state_dict(self) -> dict[str, Any]:
        """This rank's own state."""
        state = {"x": self.x, "weight": self._mixer.weight, "step": self._mixer.step}
        if isinstance(self._mixer, Choco):
            state["copies"] = {str(rank): tensor for rank, tensor in self._mixer.copies.items()}
        return state

    def load_state_dict(self, mean: Tensor, parts: Sequence[Any]) -> None:
        """Go on as saved; with another number of ranks than now, from the mean."""
        if len(parts) != self._world.size:
            self.x.copy_(mean)
            return
        own = parts[self._world.rank]
        self._mixer.weight, self._mixer.step = own["weight"], own["step"]
        self.x.copy_(own["x"])
        if isinstance(self._mixer, Choco):
            for rank, tensor in self._mixer.copies.items():
                tensor.copy_(own["copies"][str(rank)])


def flatten(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """Make the parameters views of one flat tensor, and give it."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]) if parameters else torch.empty(0)
    pieces = torch.split(flat, [p.numel() for p in parameters])
    for p, piece in zip(parameters, pieces, strict=True):
        p.data = piece.view_as(p)
    return flat
