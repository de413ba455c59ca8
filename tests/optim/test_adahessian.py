"""AdaHessian against what is known of quadratics, against finite differences, and against its formulas in numpy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.errors import UnsupportedError
from hpcopt.optim import AdaHessian, AdaHessianConfig
from hpcopt.optim.adahessian import averaged
from hpcopt.optim.products import gradients_and_products, products
from hpcopt.optim.signs import dense, rademacher

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using backward.. with create_graph=True"
)  # the optimizer ends the cycle


def quadratic(size=6):
    """A symmetric matrix and a parameter."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return a + a.T, nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))


def test_products_are_those_of_finite_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    parameters = list(net.parameters())
    vectors = [torch.randn_like(p) for p in parameters]

    def gradient(shift):
        shifted = {n: p.detach() + shift * v for (n, p), v in zip(net.named_parameters(), vectors, strict=True)}
        leaves = {name: t.requires_grad_() for name, t in shifted.items()}
        loss = F.cross_entropy(torch.func.functional_call(net, leaves, (x,)), y)
        return torch.autograd.grad(loss, list(leaves.values()))

    loss = F.cross_entropy(net(x), y)
    got = products(torch.autograd.grad(loss, parameters, create_graph=True), parameters, vectors)
    for h, plus, minus in zip(got, gradient(1e-5), gradient(-1e-5), strict=True):
        torch.testing.assert_close(h, (plus - minus) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_diagonal_hessian_is_seen_exactly_and_one_step_reaches_the_minimum():
    a = torch.tensor([0.5, -3.0, 40.0])
    for seed in range(5):
        x = nn.Parameter(torch.tensor([1.0, 0.0, -2.0]))
        optimizer = AdaHessian([x], lr=1.0, betas=(0.0, 0.0), eps=1e-30, seed=seed)
        (0.5 * (a.abs() * x**2).sum()).backward(create_graph=True)
        optimizer.step()
        assert torch.equal(optimizer.state[x]["size"], a.abs())
        torch.testing.assert_close(x.detach(), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6,), (3, 2)])
def test_the_estimate_of_a_full_one_has_the_right_mean_and_variance(shape):
    """Also by the signs of a matrix, which are a column's times a row's."""
    a, x = quadratic()
    p = nn.Parameter(x.detach().view(shape))
    estimates = []
    for seed in range(4000):
        (v,) = rademacher([p], seed)
        estimates.append(dense(v).flatten() * (a @ dense(v).flatten()))
        if seed < 3:
            g = torch.autograd.grad(0.5 * p.flatten() @ a @ p.flatten(), p, create_graph=True)
            torch.testing.assert_close(products(g, [p], [v])[0].flatten() * dense(v).flatten(), estimates[-1])
    drawn = torch.stack(estimates)
    variance = a.square().sum(1) - a.diagonal().square()
    spread = (variance / len(drawn)).sqrt()
    assert bool(((drawn.mean(0) - a.diagonal()).abs() < 4 * spread).all())
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.15, atol=0)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_equals_the_formulas(power):
    """With the Hessian looked at every second step; power 0 is momentum."""
    a, x = quadratic()
    start, matrix = x.detach().numpy().copy(), a.numpy()
    optimizer = AdaHessianConfig(lr=0.02, betas=(0.9, 0.8), eps=1e-2, power=power, every=2).build([x])
    for _ in range(7):
        optimizer.zero_grad()
        (0.5 * x @ a @ x).backward(create_graph=True)
        optimizer.step()
    m, s = np.zeros_like(start), np.zeros_like(start)
    for t in range(1, 8):
        if t % 2:
            (v,) = rademacher([torch.zeros(6, dtype=torch.float64)], t - 1)
            s = 0.8**2 * s + (1 - 0.8**2) * (matrix @ v.numpy()) ** 2
            root = np.sqrt(s / (1 - 0.8 ** (t + 1))) ** power + 1e-2
        m = 0.9 * m + 0.1 * (matrix @ start)
        start = start - 0.02 * (m / (1 - 0.9**t) / root)
    np.testing.assert_allclose(x.detach().numpy(), start, rtol=1e-10)


def test_power_0_is_torchs_momentum():
    """At ``lr / (1 + eps)``, and by the bias correction of a mean that began at 0."""
    a, x = quadratic()
    y = nn.Parameter(x.detach().clone())
    ours = AdaHessian([x], lr=0.05, betas=(0.9, 0.999), eps=0.25, power=0.0)
    theirs = torch.optim.SGD([y], lr=1.0, momentum=0.9)
    for t in range(1, 9):
        for p, optimizer in ((x, ours), (y, theirs)):
            optimizer.zero_grad()
            (0.5 * p @ a @ p).backward(create_graph=p is x)
        theirs.param_groups[0]["lr"] = 0.05 / 1.25 * (1 - 0.9) / (1 - 0.9**t)
        ours.step()
        theirs.step()
        torch.testing.assert_close(x, y, rtol=1e-12, atol=0)


@pytest.mark.parametrize("average", ["kernel", "row", "block"])
@pytest.mark.parametrize("shape", [(4, 3, 3, 2), (4, 3, 5), (6, 5), (7,), (0, 3), ()])
def test_averages_keep_the_sum_and_their_pieces_are_equal(shape, average):
    diagonal = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(averaged(-diagonal, average, block=4).abs(), averaged(diagonal, average, block=4))
    got = averaged(diagonal, average, block=4)
    assert got.shape == diagonal.shape
    torch.testing.assert_close(got.sum(), diagonal.sum())
    if average == "block" and len(shape) > 1 and diagonal.numel():
        assert all(len(piece.unique()) == 1 for piece in got.flatten().split(4))
    elif len(shape) > 2:
        assert len(got.flatten(2)[0, 0].unique()) == 1
    elif len(shape) == 2 and average == "row" and diagonal.numel():
        assert len(got[0].unique()) == 1
    else:
        assert torch.equal(got, diagonal)


def test_the_state_comes_back_bit_for_bit():
    a, x = quadratic()
    y, config = nn.Parameter(x.detach().clone()), AdaHessianConfig(lr=0.05, every=3)
    first, second = config.build([x]), config.build([y])

    def steps(optimizer, p, count):
        for _ in range(count):
            optimizer.zero_grad()
            (0.5 * p @ a @ p).backward(create_graph=True)
            optimizer.step()

    steps(first, x, 4)
    y.data.copy_(x.detach())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(first, x, 4)
    steps(second, y, 4)
    assert torch.equal(x, y)


def test_a_step_between_looks_goes_by_the_gradient_alone():
    """Its loss needs no second derivative, its gradients have no graph, and what they are divided by stays."""
    net, x = nn.Linear(3, 2), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    optimizer = AdaHessian(net.parameters(), every=2)
    sizes, losses = [], []
    for _ in range(4):
        losses.append(float(optimizer.backward(net, lambda net: (net(x) - 1).square().mean())))
        assert all(p.grad.grad_fn is None for p in net.parameters())
        optimizer.step()
        sizes.append(optimizer.state[net.weight]["size"].clone())
    assert losses == sorted(losses, reverse=True)
    assert torch.equal(sizes[0], sizes[1])
    assert torch.equal(sizes[2], sizes[3])
    assert not torch.equal(sizes[1], sizes[2])


def test_a_gradient_without_a_graph_is_no_use():
    p = nn.Parameter(torch.ones(2))
    (p**2).sum().backward()
    with pytest.raises(UnsupportedError, match=r"create_graph=True"):
        AdaHessian([p]).step()


def test_a_loss_without_a_second_derivative_is_refused():
    bag = nn.EmbeddingBag(4, 3)
    bag(torch.tensor([[0, 1]])).square().sum().backward(create_graph=True)
    with pytest.raises(UnsupportedError, match="no second derivative: the derivative for '_embedding_bag_backward'"):
        AdaHessian(bag.parameters()).step()


class Attention(nn.Module):
    """One head over five tokens, by torch's own kernel, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(4, 12)

    def forward(self, x):
        return F.scaled_dot_product_attention(*self.into(x).chunk(3, -1), is_causal=True)


@pytest.mark.parametrize(
    "network",
    [Attention, lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation="gelu", batch_first=True)],
    ids=["kernel", "layer"],
)
def test_products_go_through_attention(network):
    torch.manual_seed(0)
    model, x = network().double(), torch.randn(6, 5, 4, dtype=torch.float64)
    parameters = list(model.parameters())
    vectors = [torch.randn_like(p) for p in parameters]

    def gradient(shift):
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p += shift * v
        found = torch.autograd.grad(model(x).square().sum(), parameters)
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p -= shift * v
        return found

    _, slopes, seen = gradients_and_products(model, lambda m: m(x).square().sum(), parameters, vectors)
    torch.testing.assert_close(slopes, list(gradient(0.0)))
    for product, ahead, behind in zip(seen, gradient(1e-5), gradient(-1e-5), strict=True):
        torch.testing.assert_close(product, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-7)


def test_a_linear_loss_has_no_curvature():
    p = nn.Parameter(torch.ones(2))
    assert torch.equal(products([None], [p], [torch.ones(2)])[0], torch.zeros(2))
