"""Networks that give every node of a graph logits: layers with a ReLU and dropout between them."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from hpcopt.models.config import GraphModelConfig
from hpcopt.models.graph.graph import Graph
from hpcopt.models.graph.layers import Attention, Convolution, GraphLayer, Sage, UnitNorm
from hpcopt.models.hidden import Axes, Axis


class GraphNetwork(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: Sequence[GraphLayer], units: Sequence[int], *, norm: bool, dropout: float) -> None:
        """Put them together.

        Args:
            layers: the last one gives the logits.
            units: of each hidden layer.
            norm: whether a hidden layer's outputs are normed.
            dropout: share of a layer's inputs that is set to 0 in training; the network's inputs stay as they are.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        outputs = [len(layer.bias) for layer in layers[:-1]]
        self.norms = nn.ModuleList([UnitNorm(n) if norm else nn.Identity() for n in outputs])
        self.dropout = nn.Dropout(dropout)
        self._each = [n // count for n, count in zip(outputs, units, strict=True)]

    def hidden_axes(self) -> Axes:
        """Of each parameter, see ``hpcopt.models.hidden``. A norm's gains and biases go with their units."""
        hidden = [Axis(layer, each) for layer, each in enumerate(self._each)]
        found: dict[str, tuple[Axis | None, ...]] = {}
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, GraphLayer)
            inside, outside = (hidden[place - 1] if place else None), (hidden[place] if place < len(hidden) else None)
            found |= {f"layers.{place}.{name}": axes for name, axes in layer.axes(inside, outside).items()}
        for place, norm in enumerate(self.norms):
            found |= {f"norms.{place}.{name}": (hidden[place],) for name, _ in norm.named_parameters()}
        return found

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        """Logits, (n, classes), of the graph's rows, which have x, (n, features)."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = self.dropout(norm(layer(graph, x)).relu())
        logits: Tensor = self.layers[-1](graph, x)
        return logits


class _NetworkConfig(GraphModelConfig):
    hidden: tuple[PositiveInt, ...] = Field((256, 256), min_length=1, description="widths of the hidden layers")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of a hidden layer's outputs set to 0 in training")

    def _build(self, kind: type[GraphLayer], features: int, classes: int, *, norm: bool) -> GraphNetwork:
        sizes = [features, *self.hidden, classes]
        layers = [kind(sizes[at], sizes[at + 1], first=at == 0) for at in range(len(sizes) - 1)]
        return GraphNetwork(layers, self.hidden, norm=norm, dropout=self.dropout)


class GcnConfig(_NetworkConfig):
    """Graph convolutions."""

    name: Literal["gcn"] = "gcn"
    norm: bool = Field(False, description="LayerNorm over the units of each hidden layer")

    def build(self, features: int, classes: int) -> GraphNetwork:
        return self._build(Convolution, features, classes, norm=self.norm)


class GraphSageConfig(_NetworkConfig):
    """GraphSAGE with means."""

    name: Literal["graphsage"] = "graphsage"
    norm: bool = Field(True, description="LayerNorm over the units of each hidden layer")

    def build(self, features: int, classes: int) -> GraphNetwork:
        return self._build(Sage, features, classes, norm=self.norm)


class GatConfig(_NetworkConfig):
    """Graph attention; a unit of a hidden layer is a head."""

    name: Literal["gat"] = "gat"
    heads: int = Field(4, ge=1, description="of each hidden layer, whose width they share; the last layer has one")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if any(width % self.heads for width in self.hidden):
            raise ValueError(f"heads = {self.heads} do not divide the widths hidden = {list(self.hidden)}")
        return self

    def build(self, features: int, classes: int) -> GraphNetwork:
        sizes = [features, *self.hidden, classes]
        last = len(sizes) - 2
        layers = [
            Attention(sizes[at], sizes[at + 1], heads=1 if at == last else self.heads, first=at == 0)
            for at in range(len(sizes) - 1)
        ]
        return GraphNetwork(layers, [self.heads] * len(self.hidden), norm=False, dropout=self.dropout)


class NodeMlpConfig(_NetworkConfig):
    """Dense layers that see a node's own features only: what a graph must beat."""

    name: Literal["node_mlp"] = "node_mlp"
    norm: bool = Field(False, description="LayerNorm over the units of each hidden layer")

    def build(self, features: int, classes: int) -> GraphNetwork:
        return self._build(GraphLayer, features, classes, norm=self.norm)
