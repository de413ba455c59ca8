"""Plain modules become graphs that compute the same; what cannot is refused with its line."""

import inspect

import pytest
import torch
from torch import nn

from hpcopt.dataflow import Instance, graph_of
from hpcopt.errors import JobError
from tests.dataflow.serial import against_autograd

WIDTH = 4


def squares(outputs):
    return outputs.square().sum()


class Plain(nn.Module):
    """Submodules that the networks below share out."""

    deep = True

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def used(self, *names):
        """Let go of the rest."""
        for name in {"a", "b", "cell", "layers", "scale"} - set(names):
            delattr(self, name)
        return self


class Lstm(Plain):
    def forward(self, rows):
        h = torch.zeros(WIDTH)
        c = h
        for row in self.a(rows):
            h, c = self.cell(row, (h, c))
        return self.b(h) + torch.tanh(c)


class Nested(Plain):
    def forward(self, x):
        total = torch.zeros(WIDTH)
        offset = self.b(x.sum((0, 1)))
        for row in x:
            inner = total * 0.5
            for value in row:
                inner = inner + self.a(value * offset)
            total += torch.tanh(inner)
        return total * offset


class Shared(Plain):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
            x = self.a(x)
        if self.deep:
            x = x + self.a(self.b(x))
        return x


class Unused(Plain):
    def forward(self, x, y):
        h = torch.zeros(WIDTH)
        for _ in y:
            h = self.a(h + x)
        return h


def rows(*shape):
    return torch.randn(*shape)


@pytest.mark.parametrize(
    ("model", "names", "inputs"),
    [
        (Lstm, "a b cell", [(rows(n, WIDTH),) for n in (3, 1, 0)]),
        (Nested, "a b", [(rows(n, m, WIDTH),) for n, m in ((2, 3), (3, 1), (1, 2))]),
        (Shared, "a b layers", [(rows(2, WIDTH),)]),
        (Unused, "a", [(rows(WIDTH), rows(n)) for n in (2, 4)]),
    ],
)
def test_a_traced_module_computes_the_same(model, names, inputs):
    torch.manual_seed(0)
    against_autograd(model().used(*names.split()), [Instance(one, ()) for one in inputs], squares)


def test_layers_in_a_row_are_a_node_each():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    graph = against_autograd(model, [Instance((torch.randn(2, 3),), ())], squares)
    assert [node.name for node in graph.transforms().values()] == ["0", "2"]


class While(Plain):
    def forward(self, x):
        while x.sum() > 0:
            x = self.a(x)
        return x


class OnValues(Plain):
    def forward(self, x):
        if x.sum() > 0:
            x = self.a(x)
        return x


class OwnParameter(Plain):
    def forward(self, x):
        x = self.a(x)
        return x * self.scale


class Leaves(Plain):
    def forward(self, x):
        for row in x:
            return self.a(row)
        return x


class Sets(Plain):
    def forward(self, x):
        self.seen = x
        return self.a(x)


class FromNothing(Plain):
    def forward(self, x):
        h = self.a(x[0])
        for _ in x:
            h = self.b(torch.zeros(WIDTH))
        return h


class Forgets(Plain):
    def forward(self, x):
        x = self.a(x)


@pytest.mark.parametrize(
    ("model", "line", "why"),
    [
        (While, "while x.sum() > 0:", "tensor's values"),
        (OnValues, "if x.sum() > 0:", "tensor's values"),
        (OwnParameter, "return x * self.scale", "belongs to a submodule"),
        (Leaves, "return self.a(row)", "inside a loop"),
        (Sets, "self.seen = x", "only names can be set"),
        (FromNothing, "h = self.b(torch.zeros(WIDTH))", "made of others"),
        (Forgets, "def forward(self, x):", "returns nothing"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_its_line(model, line, why):
    source, first = inspect.getsourcelines(model)
    number = first + next(k for k, text in enumerate(source) if line in text)
    with pytest.raises(JobError, match=rf"test_tracing.py:{number}: .*{why}"):
        graph_of([model()], squares)


def test_a_tuple_where_one_tensor_is_named_is_refused_with_its_line():
    class Tuple(Plain):
        def forward(self, x):
            h = self.cell(x)
            return h + 1

    with pytest.raises(JobError, match=r"test_tracing.py:\d+: 2 values, where 1 are named"):
        against_autograd(Tuple().used("cell"), [Instance((torch.randn(WIDTH),), ())], squares)
