"""Graph networks against dense matrices, and what they say of their hidden units."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from hpcopt.errors import JobError
from hpcopt.models.graph.graph import Graph, induced
from hpcopt.models.graph.layers import Attention, Convolution, Sage
from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig, NodeMlpConfig
from hpcopt.models.graph.partition import partition
from hpcopt.models.hidden import Axis, hidden_axes, widths
from hpcopt.prepare.graph import adjacency

NODES = 17


@pytest.fixture
def dense() -> torch.Tensor:
    """An undirected graph as a matrix of zeros and ones; node 3 has no neighbours."""
    draw = torch.rand(NODES, NODES, generator=torch.Generator().manual_seed(0)) < 0.15
    a = (draw | draw.T).double().fill_diagonal_(0)
    a[3] = a[:, 3] = 0
    return a


def graph_of(a: torch.Tensor) -> Graph:
    first, neighbours = adjacency(len(a), a.nonzero().numpy())
    indptr = np.append(first, len(neighbours))
    return Graph(torch.from_numpy(indptr), torch.from_numpy(neighbours.astype(np.int64)))


def inputs(columns: int = 5) -> torch.Tensor:
    return torch.randn(NODES, columns, generator=torch.Generator().manual_seed(1)).double().requires_grad_()


def smoothing(a: torch.Tensor) -> torch.Tensor:
    own = a + torch.eye(len(a))
    return own / (own.sum(1).outer(own.sum(1))).sqrt()


def mean(a: torch.Tensor) -> torch.Tensor:
    return a / a.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize(("what", "matrix"), [("sum", lambda a: a), ("mean", mean), ("smooth", smoothing)])
def test_sums_over_neighbours_and_their_gradients(dense, what, matrix):
    x, weights = inputs(), torch.randn(NODES, 5, dtype=torch.float64)
    graph, y = graph_of(dense), inputs()
    (getattr(graph, what)(x) * weights).sum().backward()
    expected = matrix(dense) @ y
    (expected * weights).sum().backward()
    torch.testing.assert_close(getattr(graph, what)(x), expected)
    torch.testing.assert_close(x.grad, y.grad)


def test_inputs_without_a_gradient_are_summed_once(dense):
    graph, x = graph_of(dense), inputs().detach()
    assert graph.smooth(x) is graph.smooth(x)
    assert graph.smooth(x.clone()) is not graph.smooth(x)


def test_a_graph_moves_to_a_device_once(dense):
    graph, x = graph_of(dense), inputs()
    moved = graph.to(torch.device("meta"))
    assert moved is graph.to(torch.device("meta")) and moved is moved.to(torch.device("meta"))
    assert graph.beside(x) is x and moved.beside(x).is_meta and moved.beside(x) is moved.beside(x)
    assert moved.beside(x.clone()) is not moved.beside(x)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [Convolution, Sage])
def test_layers_are_what_their_papers_say(dense, kind, first):
    torch.manual_seed(0)
    layer = kind(5, 4, first=first).double()
    x, w, b = inputs(), layer.linear.weight, nn.init.normal_(layer.bias)
    if kind is Convolution:
        expected = smoothing(dense) @ x @ w.T + b
    else:
        expected = torch.cat([x, mean(dense) @ x], 1) @ torch.cat([layer.own.weight, w], 1).T + b
    torch.testing.assert_close(layer(graph_of(dense), x), expected)


def test_attention_is_what_its_paper_says(dense):
    torch.manual_seed(0)
    layer, x = Attention(5, 6, heads=2, first=True).double(), inputs()
    found = layer(graph_of(dense), x)
    h = (x @ layer.linear.weight.T).view(NODES, 2, 3)
    allowed = (dense + torch.eye(NODES)) > 0
    for head in range(2):
        scores = F.leaky_relu((h[:, head] @ layer.here[head])[:, None] + h[:, head] @ layer.there[head], 0.2)
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(1)
        torch.testing.assert_close(found[:, 3 * head : 3 * head + 3], weights @ h[:, head])


def test_the_graph_of_some_nodes(dense):
    whole, nodes = graph_of(dense), np.array([0, 3, 4, 9, 16])
    part = induced(whole.indptr.numpy(), whole.indices.numpy(), nodes)
    torch.testing.assert_close(part.sum(torch.eye(5)).double(), dense[nodes][:, nodes])


@pytest.mark.parametrize(
    "config",
    [
        GcnConfig(hidden=(8, 6), norm=True),
        GraphSageConfig(hidden=(8, 6)),
        GatConfig(hidden=(8, 4), heads=2),
        NodeMlpConfig(hidden=(8,)),
    ],
)
def test_every_parameter_says_where_its_hidden_units_lie(config):
    model = config.build(5, 3)
    axes, named = hidden_axes(model), dict(model.named_parameters())
    assert axes.keys() == named.keys()
    heads = getattr(config, "heads", None)
    assert widths(model) == ([heads] * len(config.hidden) if heads else list(config.hidden))
    last = len(config.hidden)
    assert axes[f"layers.{last}.bias"] == (None,) and axes["layers.0.linear.weight"][1] is None


def test_a_chain_of_dense_layers_says_so_too():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.Tanh(), nn.Linear(6, 2)
    )
    axes = hidden_axes(model)
    assert axes["1.weight"] == (Axis(0), None) and axes["3.weight"] == (Axis(1), Axis(0))
    assert axes["5.weight"] == (None, Axis(1)) and axes["5.bias"] == (None,)
    with pytest.raises(JobError, match="hidden_axes"):
        hidden_axes(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)))


def test_heads_must_share_the_width():
    with pytest.raises(ValidationError, match="do not divide"):
        GatConfig(hidden=(6,), heads=4)


@pytest.mark.parametrize("parts", [1, 2, 3, 5, NODES])
def test_a_partition_is_balanced(dense, parts):
    graph = graph_of(dense)
    of = partition(graph.indptr.numpy(), graph.indices.numpy(), parts)
    counts = np.bincount(of, minlength=parts)
    assert counts.sum() == NODES and counts.max() <= -(-NODES // parts)


def test_a_partition_keeps_communities_together():
    groups, each = 4, 30
    draw = np.random.default_rng(0)
    first = draw.integers(0, groups * each, 2000)
    edges = np.stack([first, first // each * each + draw.integers(0, each, 2000)], 1)
    start, neighbours = adjacency(groups * each, edges)
    of = partition(np.append(start, len(neighbours)), neighbours.astype(np.int64), groups)
    assert all(len(set(of[g * each : (g + 1) * each])) == 1 for g in range(groups))
    with pytest.raises(JobError, match="cannot be cut into 121"):
        partition(np.append(start, len(neighbours)), neighbours.astype(np.int64), 121)
