"""Layers of few bits: forward on grids, straight-through; backward two copies of the gradient, each for its product."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.lowbit import QuantizedConfig, added_variance, grid, quantized
from hpcopt.lowbit.attention import QuantizedMultiheadAttention
from hpcopt.lowbit.layers import QuantizedConv2d, QuantizedLinear

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "same": {"kernel_size": (3, 1), "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "grouped": {"kernel_size": 3, "groups": 2, "dilation": 2, "padding": "valid"},
}


def on_grid(x: torch.Tensor, low: float, high: float, bits: int = 8) -> torch.Tensor:
    step = (high - low) / (2**bits - 1)
    return ((x - low) / step).round() * step + low


def of_integers(*shape: int, top: int = 255) -> torch.Tensor:
    """Integers from 0 to 255, both among them: their own grid of 8 bits."""
    found = torch.randint(0, top + 1, shape, generator=torch.Generator().manual_seed(3)).float()
    found.view(-1)[:2] = torch.tensor([0.0, float(top)])
    return found


def replaced(layer: nn.Module, **settings) -> nn.Module:
    return QuantizedConfig(**settings).apply(copy.deepcopy(layer))


def test_forward_is_the_product_of_what_is_on_the_grids():
    torch.manual_seed(0)
    old, x = nn.Linear(7, 5), torch.randn(11, 7)
    layer = replaced(old, forward_bits=3)
    w = old.weight.detach()
    rows = torch.stack([on_grid(row, float(row.min()), float(row.max()), 3) for row in x])
    expected = rows @ on_grid(w, float(w.min()), float(w.max()), 3).T + old.bias
    torch.testing.assert_close(layer(x), expected)


def test_the_grid_of_weights_holds_zero():
    old = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        old.weight.copy_(torch.tensor([[1.0, 2.0], [2.5, 3.0]]))
    layer, x = replaced(old, forward_bits=2), torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(layer(x), x @ torch.tensor([[1.0, 2.0], [2.0, 3.0]]).T), "steps of 1 from 0"


@pytest.mark.parametrize("gradient", ["exact", "ptq", "psq", "bhq"])
@pytest.mark.parametrize("settings", [None, *CONVOLUTIONS.values()], ids=["linear", *CONVOLUTIONS])
def test_where_nothing_is_rounded_gradients_are_the_exact_ones(settings, gradient):
    """Integers forward; backward integers too, in rows that have all the same range: one group mixes none of them."""
    old = nn.Linear(3, 6) if settings is None else nn.Conv2d(4, 6, **settings)
    x = of_integers(1, 3) if settings is None else of_integers(1, 4, 8, 7)
    with torch.no_grad():
        old.weight.copy_(of_integers(*old.weight.shape))
    new = replaced(old, gradient=gradient, bits=8)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = new(ours), old(theirs)
    torch.testing.assert_close(found, expected)
    upstream = of_integers(*found.shape)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name, p in new.named_parameters():
        torch.testing.assert_close(p.grad, old.get_parameter(name).grad)


def test_each_copy_makes_its_gradient():
    torch.manual_seed(1)
    layer = replaced(nn.Linear(4, 9, bias=False), gradient="psq", bits=2)
    x, upstream = torch.randn(6, 4, requires_grad=True), torch.randn(6, 9)
    state = torch.get_rng_state()
    layer(x).backward(upstream)
    torch.set_rng_state(state)
    w = layer.weight.detach()
    w = on_grid(w, float(w.min()), float(w.max()))
    to_input, to_weight = quantized(upstream, "psq", 2), quantized(upstream, "ptq", 8)
    torch.testing.assert_close(x.grad, to_input @ w)
    rows = torch.stack([on_grid(row, float(row.min()), float(row.max())) for row in x.detach()])
    torch.testing.assert_close(layer.weight.grad, to_weight.T @ rows)


@pytest.mark.parametrize("gradient", ["ptq", "bhq"])
@pytest.mark.parametrize("shape", [(5, 3, 4), (4,)])
def test_the_mean_gradient_is_that_of_exact_backward(gradient, shape):
    """Theorem 1 of the paper, on a sample's rows of any number of dimensions."""
    torch.manual_seed(2)
    old, x = nn.Linear(4, 6), torch.randn(*shape)
    exact, noisy = replaced(old, gradient="exact"), replaced(old, gradient=gradient, bits=3)
    upstream = torch.randn(*shape[:-1], 6)

    def gradients(layer: nn.Module) -> torch.Tensor:
        at = x.clone().requires_grad_()
        return torch.cat([g.flatten() for g in torch.autograd.grad(layer(at), [at, layer.weight], upstream)])

    expected, found = gradients(exact), torch.stack([gradients(noisy) for _ in range(150)])
    error = (found.mean(0) - expected).norm() / (found.var(0).sum() / 150).sqrt()
    assert error < 1.6


def test_a_sample_has_its_own_grid_and_evaluation_no_draws():
    torch.manual_seed(0)
    layer = replaced(nn.Conv2d(2, 3, 3)).eval()
    x = torch.randn(5, 2, 6, 6) * torch.logspace(0, 3, 5).view(5, 1, 1, 1)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))
    torch.testing.assert_close(layer(x[0]), layer(x[:1])[0])
    state = torch.get_rng_state()
    layer(x.requires_grad_()).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_added_variance_is_that_of_each_layer():
    torch.manual_seed(3)
    model = replaced(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), bits=4)
    seen = []
    model[2].register_full_backward_hook(lambda layer, into, out: seen.append(out[0]))
    with added_variance(model) as found:
        F.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 3).backward()
    assert found["0"] == [] and len(found["2"]) == 1, "the first layer's input needs no gradient"
    (added,), (g,) = found["2"], seen
    assert added.variance == pytest.approx(float(grid(g, "bhq", 4).variance(g)))
    assert added.squared_norm == pytest.approx(float(g.square().sum())) and added.range_ratio >= 1
    model(torch.randn(2, 4)).sum().backward()
    assert len(found["2"]) == 1 and model[2].added is None


def test_a_share_without_samples_and_lower_precision():
    model = replaced(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)))
    model(torch.zeros(0, 1, 4, 4)).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(3, 1, 4, 4))
        assert out.dtype in (torch.bfloat16, torch.float32)
        out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_a_second_derivative_is_refused():
    model, x = replaced(nn.Linear(3, 2)), torch.randn(4, 3, requires_grad=True)
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_layers_are_those_that_they_stand_for():
    shared = nn.Linear(3, 3)
    old = nn.ModuleDict(
        {
            "one": shared,
            "two": nn.Sequential(shared, nn.ReLU()),
            "kept": nn.Linear(3, 3),
            "picture": nn.Conv2d(1, 1, 2),
            "attention": nn.MultiheadAttention(4, 2),
        }
    )
    names = set(old.state_dict())
    new = QuantizedConfig(skip=("kept",)).apply(old)
    assert type(new["one"]) is QuantizedLinear and new["one"] is new["two"][0] and new["one"].weight is shared.weight
    assert type(new["picture"]) is QuantizedConv2d and type(new["kept"]) is nn.Linear
    assert type(new["attention"]) is QuantizedMultiheadAttention
    assert names == set(new.state_dict())
    assert isinstance(QuantizedConfig().apply(nn.Linear(2, 2)), QuantizedLinear)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear, Conv2d or MultiheadAttention that is not skipped"):
        QuantizedConfig(skip=("*",)).apply(new)
    with pytest.raises(ValueError, match="skip: no layer is named kpt"):
        QuantizedConfig(skip=("kpt", "0")).apply(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_a_transformer_is_evaluated_in_few_bits():
    """Without gradients, too, where torch has a kernel that calls no layers."""
    torch.manual_seed(0)
    old = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    new, x = QuantizedConfig(forward_bits=2).apply(copy.deepcopy(old)), torch.randn(3, 5, 8)
    with torch.no_grad():
        found, plain = new(x), old(x)
    torch.testing.assert_close(found, new(x).detach())
    assert not torch.allclose(found, plain, atol=0.01)
