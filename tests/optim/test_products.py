"""The Hessian times a vector of signs, whatever a network does with its weights, against plain double backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hpcopt.optim.products import gradients_and_products, products
from hpcopt.optim.signs import Outer, dense, rademacher


class Cube(torch.autograd.Function):
    """A function of somebody's own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


class Tied(nn.Module):
    """One weight in linear maps by two ways, looked up, transposed, inside a function and where nothing is tracked."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.out.weight = self.words.weight

    def forward(self, x):
        rows = self.words((x.sum(1) > 0).long())
        with torch.no_grad():
            scale = F.linear(rows, self.out.weight).square().mean()
        return (
            self.out(rows).tanh() @ self.words.weight
            + F.linear(x, Cube.apply(self.out.weight)) @ self.out.weight / scale
        )


class Attention(nn.Module):
    """Whose projections are no calls of modules."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x.unsqueeze(1) * torch.arange(1, 4)[None, :, None], *[x.unsqueeze(1)] * 2)[0]


class Again(nn.Module):
    """Whose first layers are computed again on the way back."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=False))


def pictures(*shape):
    return nn.Unflatten(1, shape)


NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)),
    "in place": lambda: nn.Sequential(nn.Linear(4, 6), nn.ELU(inplace=True), nn.Linear(6, 6), nn.SiLU(inplace=True)),
    "convolutions": lambda: nn.Sequential(
        pictures(1, 2, 2),
        nn.Conv2d(1, 4, 2, stride=2, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding="same", groups=2),
        nn.Tanh(),
        nn.Conv2d(4, 3, 2, dilation=1, bias=False),
    ),
    "of 1 and 3 dimensions": lambda: nn.Sequential(
        pictures(2, 2),
        nn.Conv1d(2, 3, 2, padding=1),
        nn.Tanh(),
        nn.Unflatten(2, (1, 1, 3)),
        nn.Conv3d(3, 2, (1, 1, 2)),
        nn.Tanh(),
    ),
    "transposed": lambda: nn.Sequential(pictures(2, 2), nn.ConvTranspose1d(2, 3, 2), nn.Tanh()),
    "tied": Tied,
    "attention": Attention,
    "again": Again,
    "normed": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)
    ),
    "recurrent": lambda: nn.Sequential(nn.RNNCell(4, 3), nn.Linear(3, 2)),
}


def made(name):
    torch.manual_seed(0)
    net, x = NETWORKS[name]().double(), torch.randn(5, 4, dtype=torch.float64)
    for p in list(net.parameters())[:1]:
        p.data.add_(0.1)
    return net, lambda model: (model(x) - 0.5).square().mean() + model(x).exp().mean()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_signs_of_matrices_change_nothing_but_the_cost(name):
    net, loss = made(name)
    parameters = list(net.parameters())
    vectors = rademacher(parameters, 3)
    value, gradients, found = gradients_and_products(net, loss, parameters, vectors)
    expected_gradients = torch.autograd.grad(loss(net), parameters, create_graph=True, allow_unused=True)
    expected = products(expected_gradients, parameters, vectors)
    torch.testing.assert_close(value, loss(net).detach(), rtol=1e-12, atol=0)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-12, atol=1e-14)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    assert sum(h.abs().max() for h in found) > 1e-2
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


def test_a_look_takes_four_products_a_layer_and_two_in_the_first():
    net, x = (
        nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)),
        torch.randn(64, 64),
    )
    parameters, one = list(net.parameters()), 2 * 64**3
    loss = lambda model: model(x).square().mean()  # noqa: E731

    def counted(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / one

    vectors = rademacher(parameters, 0)
    assert counted(lambda: loss(net).backward()) == 2 + 3 + 3
    tensors = [dense(v) for v in vectors]
    assert counted(lambda: gradients_and_products(net, loss, parameters, tensors)) == 4 + 9 + 9
    assert counted(lambda: gradients_and_products(net, loss, parameters, vectors)) == 3 + 7 + 7


def test_signs_are_a_function_of_the_seed_and_uncorrelated():
    like = [torch.zeros(3, 2, 2), torch.zeros(5), torch.zeros(()), torch.zeros(0, 3), torch.zeros(2, 0)]
    drawn = [rademacher(like, seed) for seed in range(2000)]
    assert all(torch.equal(dense(a), dense(b)) for a, b in zip(drawn[7], rademacher(like, 7), strict=True))
    assert [dense(v).shape for v in drawn[0]] == [p.shape for p in like]
    assert isinstance(drawn[0][0], Outer)
    flat = torch.stack([torch.cat([dense(v).flatten() for v in vectors]) for vectors in drawn])
    assert torch.equal(flat.abs(), torch.ones(2000, 18))
    assert (flat.T @ flat / 2000 - torch.eye(18)).abs().max() < 4.5 / 2000**0.5
