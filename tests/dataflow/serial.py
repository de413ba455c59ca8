"""A graph at work in one queue, with a ledger of every message and its answer."""

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from hpcopt.dataflow import Graph, Instance, graph_of


class Ledger:
    """Hands messages about in an order drawn at random, all instances at once.

    Attributes:
        sent, answered: by (node, output port, state).
        losses: by instance.
    """

    def __init__(self, graph: Graph, seed: int = 0) -> None:
        self.graph, self._random = graph, random.Random(seed)
        self.sent, self.answered = Counter(), Counter()
        self.losses = {}

    def run(self, instances: Sequence[Instance], shape=lambda inputs: ()) -> None:
        graph, waiting = self.graph, []

        def put(number, hops):
            for hop in hops:
                if not hop.backward:
                    self.sent[number, hop.port, hop.message.state] += 1
                waiting.append((number, hop))

        for number, instance in enumerate(instances):
            put(0, graph.source.begin(number, shape(instance.inputs), instance))
        while waiting:
            number, hop = waiting.pop(self._random.randrange(len(waiting)))
            to, port = (graph.previous if hop.backward else graph.next)[number, hop.port]
            if hop.backward:
                self.answered[to, port, hop.message.state] += 1
            node = graph.nodes[to]
            put(to, (node.backward if hop.backward else node.forward)(port, hop.message))
        self.losses = {number: loss for number, (loss,) in graph.source.landed}

    def check(self) -> None:
        """Every message has exactly one answer, and nothing is left."""
        assert self.sent and self.sent == self.answered
        assert set(self.sent.values()) == {1}
        assert self.graph.remembered == 0


def against_autograd(model: nn.Module, instances: Sequence[Instance], criterion) -> Graph:
    """Losses and gradients, summed over all instances, are autograd's; gives the graph."""
    graph = graph_of([model], criterion)
    ledger = Ledger(graph)
    ledger.run(instances, getattr(model, "graph_shape", lambda inputs: ()))
    ledger.check()
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    losses = [criterion(model(*instance.inputs), *instance.target) for instance in instances]
    torch.stack(losses).sum().backward()
    for number, loss in enumerate(losses):
        torch.testing.assert_close(ledger.losses[number], loss.detach(), rtol=1e-6, atol=1e-6)
    for (name, p), gradient in zip(model.named_parameters(), found, strict=True):
        torch.testing.assert_close(
            gradient, p.grad, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    return graph
