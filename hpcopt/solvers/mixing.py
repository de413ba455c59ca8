"""A flat tensor that each rank mixes with its neighbours': what a job may say of it, and its state in a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hpcopt.comm import graphs
from hpcopt.comm.mixing import Choco, Metropolis, Mixer, PushSum
from hpcopt.comm.roll_call import RollCall
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
    patience_s: float | None = Field(
        None,
        ge=0,
        description="with [run] elastic: seconds that a round waits for the other ranks once the first is there; who"
        " comes later is left out of it, and stays where it was; by default for ever",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.graph == "file") != (self.file is not None):
            raise ValueError('graph = "file" goes with file = PATH')
        if self.mixing != "push_sum" and self.graph in ("exponential", "random"):
            raise ValueError(f'mixing = "{self.mixing}" needs an undirected graph: graph = "ring", or a file')
        if self.tau and self.mixing != "push_sum":
            raise ValueError('tau goes with mixing = "push_sum"')
        if self.tau and self.patience_s is not None:
            raise ValueError("tau and patience_s are two ways with slow ranks: leave out one")
        return self

    def mixer(self, transport: Transport, x: Tensor, seed: int) -> Mixer:
        """Make the mixer of x, shape (n,), float32.

        Raises:
            JobError: the graph's file does not fit the ranks.
        """
        graph = self._graph(transport.size, seed)
        if self.mixing == "push_sum":
            return PushSum(transport, graph, x, self.tau, self.patience_s)
        if self.mixing == "metropolis":
            return Metropolis(transport, graph, x, self.patience_s)
        return Choco(transport, graph, x, self.codec, self.gamma, seed, self.patience_s)

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

    @property
    def roll_call(self) -> RollCall | None:
        """Who is present in rounds; None where all must be."""
        return self._mixer.receipts

    def estimate(self, out: Tensor) -> Tensor:
        """Write what x stands for to out."""
        return self._mixer.estimate(out) if self._mixer.step else out.copy_(self.x)

    def mix(self, moved: Tensor, number: int, what: str) -> bool:
        """One round. Collective: over a rank's neighbours, or over those who are there.

        Args:
            moved: shape (n,): what this rank's values become before they are mixed, if it is present.
            number: of the round, above 0; rising, and the same on all ranks.
            what: for messages of a stall.

        Returns:
            Whether this rank was present; if not, its values are as before.
        """
        with self._clock("exchange"), self._world.watch(what, self._world.ranks):
            present = self._mixer.mix(moved, number)
        traffic = self._transport.traffic
        traffic.dense_bytes = dense_all_reduce_bytes(4 * self.x.numel(), self._world.size)
        traffic.hand_on(self._world.traffic, self._clock)
        return present

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
        if isinstance(self._mixer, Choco):  # the neighbours' are theirs
            state["copy"] = self._mixer.copies[self._world.rank]
        return state

    def load_state_dict(self, mean: Tensor, parts: Sequence[Any]) -> None:
        """Go on as saved; with another number of ranks than now, from the mean.

        Args:
            mean: over the ranks that saved; where ranks may be absent, the mean over ``parts`` is put there.
            parts: of those that saved, or of those of them that were present.
        """
        if len(parts) != self._world.size:
            if self.roll_call is not None:
                _mean(parts, mean)
            self.x.copy_(mean)
            return
        own = parts[self._world.rank]
        self._mixer.weight, self._mixer.step = own["weight"], own["step"]
        self.x.copy_(own["x"])
        if isinstance(self._mixer, Choco):
            for rank, tensor in self._mixer.copies.items():
                tensor.copy_(parts[rank]["copy"])


def _mean(parts: Sequence[Any], out: Tensor) -> Tensor:
    """What the values of these parts stand for together."""
    total, weight = torch.zeros_like(out, dtype=torch.float64), 0.0
    for part in parts:
        total.add_(part["x"].to(total.device))
        weight += part["weight"]
    return out.copy_(total.div_(weight))


def flatten(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """Make the parameters views of one flat tensor, and give it."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]) if parameters else torch.empty(0)
    pieces = torch.split(flat, [p.numel() for p in parameters])
    for p, piece in zip(parameters, pieces, strict=True):
        p.data = piece.view_as(p)
    return flat
