"""Weights used outside their module count as the module's own uses would."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.solvers.kaisa.test_layers import SAMPLES, collect, mean_loss
from tests.solvers.kaisa.test_preconditioner import preconditioned

WORDS, WIDTH = 9, 5


class Language(nn.Module):
    """An embedding whose weight is the output layer's, too, written in four ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.way = way
        self.words, self.body = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        if way == "tied":
            self.head = nn.Linear(WIDTH, WORDS, bias=False)
            self.head.weight = self.words.weight

    def forward(self, x):
        h = self.body(self.words(x)).tanh()
        weight = self.words.weight
        ways = {
            "tied": lambda: self.head(h),
            "linear": lambda: F.linear(h, weight),
            "keywords": lambda: F.linear(input=h, weight=weight),
            "product": lambda: h @ weight.T,
            "matmul": lambda: torch.matmul(h, weight.transpose(0, 1)),
        }
        return ways[self.way]()


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
@pytest.mark.parametrize("way", ["linear", "keywords", "product", "matmul"])
def test_an_output_layer_with_an_embeddings_weight_is_the_tied_module(way, method):
    """Where the module's covariance of gradients is diagonal, as it is for a vocabulary of usual size."""
    x = torch.randint(0, WORDS, (SAMPLES, 4), generator=torch.Generator().manual_seed(0))
    tied, _ = preconditioned(Language("tied").double(), x, max_size=8, method=method)
    free, kaisa = preconditioned(Language(way).double(), x, max_size=8, method=method)
    assert [layer.name for layer in kaisa.layers.found] == ["words", "body"]
    for name in free:
        torch.testing.assert_close(free[name], tied[name], rtol=1e-9, atol=1e-13)


class Reused(nn.Module):
    """A linear map used by its module and without it, or three modules with one weight."""

    def __init__(self, free: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.map = nn.Linear(5, 5)
        self.free = free

    def forward(self, x):
        weight, bias = self.map.weight, self.map.bias
        x = self.map(x).tanh()
        return F.linear(x, weight, bias) if self.free else self.map(x)


def test_a_linear_map_used_with_and_without_its_module_has_the_rows_of_both():
    x = torch.randn(SAMPLES, 5, dtype=torch.float64)
    free, expected = (collect(Reused(free).double(), x, mean_loss)["map"] for free in (True, False))
    for i in (1, 2):
        torch.testing.assert_close(free[i], expected[i], rtol=1e-12, atol=0)


class Unbiased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 5)

    def forward(self, x):
        return F.linear(x, self.map.weight) + 0 * self.map.bias


def test_a_use_without_the_bias_has_no_ones():
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 5, dtype=torch.float64)
    _, a, _ = collect(Unbiased().double(), x, mean_loss)["map"]
    rows = torch.cat([x, torch.zeros(SAMPLES, 1, dtype=x.dtype)], 1)
    torch.testing.assert_close(a[0], rows.T @ rows / SAMPLES, rtol=1e-12, atol=0)


def test_the_watch_ends_with_the_forward_pass_also_by_an_exception():
    model = Reused(free=True)
    preconditioned(model, torch.randn(3, 5))
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 4))
    assert not torch.overrides._get_current_function_mode_stack()
    x = torch.randn(3, 5)
    again, fresh = preconditioned(model, x), preconditioned(copy.deepcopy(model), x)
    assert again[1].layers.found[0].name == fresh[1].layers.found[0].name
    for name in again[0]:
        torch.testing.assert_close(again[0][name], fresh[0][name])
