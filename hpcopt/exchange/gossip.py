"""Exchange of parameters with neighbours, in place of gradients with all."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from hpcopt.comm import graphs
from hpcopt.comm.gossip import Choco, Metropolis, Mixer, PushSum
from hpcopt.comm.transport import Transport
from hpcopt.compress import QSGD, Codec
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.families import CODECS


class GossipConfig(ExchangeConfig):
    """After every step of its own, each rank mixes its parameters with a few neighbours'."""

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
    seed: int = Field(0, ge=0, description="decides random graphs and what codecs draw")

    @model_validator(mode="after")
    def _fits(self) -> "GossipConfig":
        if (self.graph == "file") != (self.file is not None):
            raise ValueError('graph = "file" goes with file = PATH')
        if self.mixing != "push_sum" and self.graph in ("exponential", "random"):
            raise ValueError(f'mixing = "{self.mixing}" needs an undirected graph: graph = "ring", or a file')
        if self.tau and self.mixing != "push_sum":
            raise ValueError('tau goes with mixing = "push_sum"')
        return self

    def build(self, transport: Transport, x: Tensor) -> Mixer:
        """Make the mixer of x, shape (n,), float32.

        Raises:
            JobError: the graph's file does not fit the ranks.
        """
        graph = self._graph(transport.size)
        if self.mixing == "push_sum":
            return PushSum(transport, graph, x, self.tau)
        if self.mixing == "metropolis":
            return Metropolis(transport, graph, x)
        return Choco(transport, graph, x, self.codec, self.gamma, self.seed)

    def _graph(self, size: int) -> graphs.Graph:
        if self.file is not None:
            return graphs.from_file(self.file, size)
        if self.graph == "random":
            return graphs.random(size, self.seed)
        return graphs.ring(size) if self.graph == "ring" else graphs.exponential(size)
