"""Every message is answered once, nothing is left, and what comes back is autograd's gradient."""

import pytest
import torch
from torch import nn

from hpcopt.dataflow import (
    Cond,
    Flatmap,
    Graph,
    Group,
    Instance,
    Isu,
    Message,
    Phi,
    Split,
    State,
    Ungroup,
    Wire,
    graph_of,
)
from hpcopt.errors import JobError
from hpcopt.shapes.context import Context
from hpcopt.workloads import ArithmeticTreesConfig, GraphDistanceConfig, ListReductionConfig
from tests.dataflow.serial import Ledger, against_autograd

NETWORKS = [ListReductionConfig, ArithmeticTreesConfig, GraphDistanceConfig]


def squares(outputs, *_targets):
    return outputs.square().sum()


def instance(*inputs):
    return Instance(inputs, ())


class Handmade(nn.Module):
    """Rows go apart, each by the branch of its number, and come together again, twice as many."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x):
        rows = [self.maps[t % 2](row) for t, row in enumerate(x)]
        made = torch.stack([torch.cat([row, 2 * row]) for row in rows])
        left, right = made.split(3, 1)
        return left * right + x

    def graph_shape(self, inputs):
        return (len(inputs[0]),)

    def wire(self, graph):
        x = graph.entry(lambda one: (one.inputs[0],))
        rows = graph.add(Ungroup(), x)
        branch = graph.add(Cond(lambda state: state.at[0] % 2), rows).node
        mapped = [graph.transform(f"maps.{k}", self.maps[k], Wire(branch, k)) for k in range(2)]
        twice = graph.add(
            Flatmap(lambda state, row: [((state.at[0], k), ((k + 1) * row[None],)) for k in range(2)]),
            graph.add(Phi(), *mapped),
        )
        whole = graph.add(
            Group(lambda state: (), lambda state: 2 * state.shape[0], lambda state: 2 * state.at[0] + state.at[1]),
            twice,
        )
        halves = graph.transform("halves", lambda y: (y[::2], y[1::2]), whole)
        split = graph.add(Split(2), halves).node
        return graph.transform("end", lambda a, b, x: a * b + x, Wire(split, 0), Wire(split, 1), x)


def test_every_kind_of_node_gives_autograds_gradients():
    torch.manual_seed(0)
    against_autograd(Handmade(), [instance(torch.randn(n, 3)) for n in (4, 1, 3)], squares)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.__name__)
def test_networks_that_depend_on_the_instance_give_autograds_gradients(config):
    workload = config(batch=1, hidden=6).build(Context(run_seed=1))
    instances = [workload.instance(0, index) for index in range(12)]
    against_autograd(workload.model, instances, workload.loss.criterion)


def test_a_message_that_becomes_none_is_answered_at_once():
    graph = Graph()
    spread = graph.add(Flatmap(lambda state, x: []), graph.entry(lambda one: (one.inputs[0],)))
    graph.loss(graph.entry(lambda one: (one.inputs[0],)), squares)
    graph.finish(nn.Module())
    ledger = Ledger(graph)
    ledger.run([instance(torch.ones(2))])
    assert ledger.answered[0, 0, State(0)] == 1 and graph.nodes[spread.node].remembered == 0
    assert graph.remembered == 0


def test_a_network_that_mixes_two_messages_up_says_so():
    node = Isu(lambda state: ())
    node.name = "mixed"
    node.forward(0, Message(State(3, (1,)), ()))
    with pytest.raises(RuntimeError, match=r"two messages of .*instance=3.*'mixed'"):
        node.forward(0, Message(State(3, (2,)), ()))


def test_a_loss_inside_a_loop_is_refused():
    graph = Graph()
    graph.loss(graph.add(Isu(lambda state: (1,)), graph.entry(lambda one: (one.inputs[0],))), squares)
    graph.finish(nn.Module())
    with pytest.raises(RuntimeError, match="one loss"):
        Ledger(graph).run([instance(torch.ones(2))])


class Forgetful(nn.Linear):
    def wire(self, graph):
        return graph.transform("twice", lambda x: 2 * x, graph.entry(lambda one: (one.inputs[0],)))

    def graph_shape(self, inputs):
        return ()


class Twice(Forgetful):
    def wire(self, graph):
        x = graph.entry(lambda one: (one.inputs[0],))
        return graph.transform("b", self.forward, graph.transform("a", self.forward, x, module=self), module=self)


class Loose(Forgetful):
    def wire(self, graph):
        return graph.transform("a", self.forward, graph.add(Phi(), graph.entry(lambda one: one.inputs)), module=self)


@pytest.mark.parametrize(
    ("model", "message"),
    [(Forgetful, "no node has the parameters weight, bias"), (Twice, "share a parameter"), (Loose, "input 1 of node")],
)
def test_a_graph_that_is_not_whole_is_refused(model, message):
    with pytest.raises(JobError, match=message):
        graph_of([model(2, 2)], squares)


def test_what_is_stale_is_answered_at_the_parameters_as_they_are():
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    graph = graph_of([nn.Sequential(layer)], squares)
    (node,) = graph.transforms().values()
    x, moved = torch.randn(1, 2), torch.full((2, 2), 0.5)
    node.forward(0, Message(State(0), (x,)))
    with torch.no_grad():
        layer.weight.copy_(moved)
    node.updates += 1
    (hop,) = node.backward(0, Message(State(0), (torch.ones(1, 2),)))
    assert torch.equal(hop.message.payload[0], torch.ones(1, 2) @ moved)
    assert node.staleness == {1: 1}
