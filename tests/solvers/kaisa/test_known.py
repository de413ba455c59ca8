"""Which modules are taken for layers; the others train as they would without K-FAC, and are named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from hpcopt.comm.world import alone
from hpcopt.errors import JobError
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from tests.solvers.kaisa.test_layers import mean_loss
from tests.solvers.kaisa.test_preconditioner import preconditioned


class Doubled(nn.Linear):
    """A Linear by name only."""

    def forward(self, x):
        return 2 * super().forward(x)


class Turned(nn.Conv1d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x.flip(2), weight, bias)


class Attention(nn.MultiheadAttention):
    def forward(self, x):
        return self.out_proj(F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(2, (3, -1)).sum(2))


def patched() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias).tanh()
    return layer


def partly_frozen() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.bias.requires_grad_(False)
    return layer


LEFT_ALONE = {
    "has a forward of its own": [lambda: Doubled(4, 4), lambda: Turned(3, 3, 1), patched, lambda: Attention(4, 1)],
    "is computed from other parameters": [
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
        lambda: parametrizations.orthogonal(nn.Linear(4, 4, bias=False)),
        lambda: parametrizations.weight_norm(nn.Conv1d(3, 3, 1)),
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "bias", 0.5),
    ],
    "part of it is frozen": [partly_frozen],
    "is not known": [lambda: nn.Bilinear(4, 4, 4)],
}


class Between(nn.Module):
    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(4, 4), odd, nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).tanh()
        return self.last(self.odd(x, x) if isinstance(self.odd, nn.Bilinear) else self.odd(x)).tanh()


@pytest.mark.parametrize("why, make", [(why, make) for why, all_ in LEFT_ALONE.items() for make in all_])
def test_what_is_no_plain_layer_is_left_to_the_inner_optimizer_by_name(why, make):
    torch.manual_seed(0)
    model = Between(make()).double().eval()  # spectral norms stay as they are
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    mean_loss(model(x)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    kaisa = Kaisa(model, alone(), damping=0.2, kl_clip=None)
    model.zero_grad()
    mean_loss(model(x)).backward()
    kaisa.step()
    assert [layer.name for layer in kaisa.layers.found] == ["first", "last"]
    assert list(kaisa.layers.skipped) == ["odd"]
    assert why in kaisa.layers.skipped["odd"]
    assert f"odd ({kaisa.layers.skipped['odd']})" in kaisa.describe()["KAISA layers"]
    for name, p in model.named_parameters():
        if name.startswith("odd") and p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=1e-15)
    assert not torch.allclose(model.last.weight.grad, expected["last.weight"], rtol=0.1)


def test_frozen_layers_and_attention_with_weights_of_its_own_are_named():
    model = nn.ModuleDict(
        {"frozen": nn.Linear(3, 3).requires_grad_(False), "inner": nn.MultiheadAttention(4, 1, kdim=3)}
    )
    kaisa = Kaisa(model, alone())
    assert not kaisa.layers.found
    assert kaisa.layers.skipped == {"frozen": "frozen", "inner": "its projections have weights of their own"}


class ByName(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(input=x)


@pytest.mark.parametrize(
    "inner, x",
    [
        (nn.Linear(4, 3), torch.randn(5, 4)),
        (nn.Conv2d(2, 3, 3), torch.randn(5, 2, 4, 4)),
        (nn.Embedding(6, 3), torch.arange(5)),
        (nn.LayerNorm(4), torch.randn(5, 4)),
        (nn.BatchNorm1d(4), torch.randn(5, 4)),
    ],
    ids=str,
)
def test_arguments_by_keyword(inner, x):
    plain, _ = preconditioned(nn.Sequential(copy.deepcopy(inner)), x)
    by_name, kaisa = preconditioned(ByName(copy.deepcopy(inner)), x)
    assert [layer.name for layer in kaisa.layers.found] == ["inner"]
    for found, expected in zip(by_name.values(), plain.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_layer_without_a_shape_yet_is_refused_and_one_with_it_taken():
    model = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(2))
    with pytest.raises(JobError, match=r"0\.weight has no shape yet: run a batch"):
        Kaisa(model, alone())
    model(torch.ones(2, 5))
    assert [layer.name for layer in Kaisa(model, alone()).layers.found] == ["0", "2"]


def test_a_hook_that_changes_an_output_does_not_change_what_the_layer_is():
    """The layer's own output is looked at, whatever a hook makes of it."""
    torch.manual_seed(0)
    inside, outside = (nn.Sequential(nn.Linear(4, 3)).double() for _ in range(2))
    outside.load_state_dict(inside.state_dict())
    inside[0].register_forward_hook(lambda module, args, output: 3 * output)
    x = torch.randn(6, 4, dtype=torch.float64)
    hooked, _ = preconditioned(inside, x)
    plain, _ = preconditioned(outside, x, loss=lambda y: mean_loss(3 * y))
    for name in plain:
        torch.testing.assert_close(hooked[name], plain[name], rtol=1e-12, atol=0)


class AttentionByName(nn.Module):
    def __init__(self, by_name: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.by_name = nn.MultiheadAttention(4, 2, batch_first=True), by_name

    def forward(self, x):
        return (self.inner(query=x, key=x, value=x) if self.by_name else self.inner(x, x, x))[0]


def test_attention_by_keyword():
    x = torch.randn(5, 3, 4)
    by_name, kaisa = preconditioned(AttentionByName(True), x)
    plain, _ = preconditioned(AttentionByName(False), x)
    assert kaisa.cosines["inner.in_proj"] < 0.9999
    for name in plain:
        torch.testing.assert_close(by_name[name], plain[name], rtol=0, atol=0)


@pytest.mark.parametrize("other", [torch.float64, "meta"])
def test_layers_of_several_places_or_precisions_are_refused_by_name(other):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(other))
    with pytest.raises(JobError, match=r"layers differ: 0 \(torch\.float32, cpu\), 1 \(.*\); name some in skip"):
        Kaisa(model, alone())
