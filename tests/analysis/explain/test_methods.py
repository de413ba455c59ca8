"""Every method against what is known: linear networks, small games, completeness, and a network of random weights."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from hpcopt.analysis.explain import METHODS, Settings, explain
from hpcopt.analysis.explain.methods import row_seeds
from hpcopt.analysis.explain.surrogate import Surrogate, neighbours
from hpcopt.errors import DataError, HpcoptError, JobError

pytest.importorskip("captum")
QUICK = Settings(steps=16, samples=24, draws=3, patch=4, evaluations=16)


class Residual(nn.Module):
    """A convolution beside a shortcut, with ReLUs as functions, as our residual blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.relu(self.one(x))
        h = torch.relu(self.two(h) + h)
        return self.head(h.mean((2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(1)
    return Residual().eval()


@pytest.fixture
def images():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def squares(side: int, patch: int) -> Tensor:
    across = torch.arange(side) // patch
    return (across[:, None] * (side // patch) + across)[None, None]


def linear(features: int = 6, classes: int = 3) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(features, classes)


def test_the_gradient_of_a_linear_network_is_its_weights():
    model, x, target = linear(), torch.randn(4, 6), torch.tensor([0, 1, 2, 1])
    for method in ("saliency", "smooth"):
        assert torch.allclose(explain(method, model, x, target), model.weight[target])


def test_of_a_linear_network_every_part_counts_its_weight_times_its_distance_from_the_baseline():
    model, x, base, target = linear(), torch.randn(4, 6), torch.randn(6), torch.tensor([0, 1, 2, 1])
    wanted = model.weight[target] * (x - base)
    for method in ("integrated", "ablation", "occlusion", "kernel_shap"):
        found = explain(method, model, x, target, baseline=base[None], settings=Settings(samples=64))
        assert torch.allclose(found, wanted, atol=1e-5), method


def test_drawn_shapley_values_of_a_linear_network_are_exact():
    """More parts than the samples have coalitions of."""
    model, x = linear(12), torch.randn(2, 12)
    found = explain("kernel_shap", model, x, 1, settings=Settings(samples=80))
    assert torch.allclose(found, model.weight[1] * x, atol=1e-4)


@pytest.mark.parametrize("method", ["integrated", "kernel_shap"])
def test_what_parts_count_adds_up(method, network, images):
    base = torch.full((1, 1, 8, 8), 0.3)
    found = explain(
        method, network, images, 2, baseline=base, parts=squares(8, 4), settings=Settings(steps=64, samples=32)
    )
    if method == "kernel_shap":
        found = found / 16  # a square's value stands at each of its places
    with torch.no_grad():
        wanted = (network(images) - network(base))[:, 2]
    assert torch.allclose(found.sum((1, 2, 3)), wanted, rtol=1e-3, atol=1e-4)


class Game(nn.Module):
    """A game of four players: some win together, one against another."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = x.unbind(1)
        return torch.stack([3 * a * b - 2 * a * b * c + c * d + d, a + d], 1)


def shapley(model: nn.Module, players: int) -> Tensor:
    """By its definition: the mean over all orders of what a player adds to those before it."""
    values = torch.zeros(players)
    for order in itertools.permutations(range(players)):
        x = torch.zeros(1, players)
        for player in order:
            before = model(x)[0, 0]
            x[0, player] = 1
            values[player] += model(x)[0, 0] - before
    return values / math.factorial(players)


def test_shapley_values_of_a_small_game_are_exact():
    found = explain("kernel_shap", Game(), torch.ones(1, 4), 0, settings=Settings(samples=16))
    assert torch.allclose(found[0], shapley(Game(), 4), atol=1e-5)


def test_one_part_counts_all():
    found = explain("kernel_shap", Game(), torch.ones(1, 4), 0, parts=torch.zeros(1, 4, dtype=torch.int64))
    assert found.tolist() == [[3.0] * 4]


def test_products_find_what_only_two_do_together():
    """A surrogate with products fits a product wherever the samples lie, and gives each half of it; one without gives
    each nearly all of it, where the samples lie near the input.
    """
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    y, near = 2 * z[:, 0] * z[:, 1] - z[:, 2], 20 ** z.sum(1)
    both, alone = Surrogate([(0, 1), (1, 2), (0, 2)], ridge=1e-9), Surrogate(ridge=1e-9)
    for surrogate in (both, alone):
        surrogate.fit([(z[:3], y[:3], near[:3]), (z[3:], y[3:], near[3:])])
    assert torch.allclose(both.representation(), torch.tensor([1.0, 1.0, -1.0]).double(), atol=1e-6)
    assert (alone.representation()[:2] > 1.8).all()


def test_neighbours_touch():
    assert neighbours(squares(8, 4)) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert neighbours(torch.arange(3)[None, :, None].expand(1, 3, 5)) == [(0, 1), (1, 2)]


def test_guided_gradients_count_relus_of_either_kind(network, images):
    """captum's own is the oracle where all are modules."""
    from captum.attr import GuidedBackprop

    torch.manual_seed(4)
    modules = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    )
    wanted = GuidedBackprop(modules).attribute(images, target=1)
    assert torch.allclose(explain("guided", modules, images, 1), wanted, atol=1e-7)
    assert not torch.allclose(explain("guided", network, images, 1), explain("saliency", network, images, 1))
    with pytest.raises(JobError, match="no ReLU"):
        explain("guided", linear(), torch.randn(1, 6), 0)


def test_maps_have_the_size_of_the_images_and_are_positive(network, images):
    for method in (name for name, m in METHODS.items() if m.maps):
        for layer in (None, "one"):
            found = explain(method, network, images, torch.tensor([0, 1, 2]), layer)
            assert found.shape == (3, 1, 8, 8), method
            assert (found >= 0).all()
            assert torch.isfinite(found).all()


def test_grad_cam_pp_is_the_papers_sum_over_places(network, images):
    """The paper's form, of derivatives of exp(number), place by place; that factor is left out of a whole map."""
    maps: list[Tensor] = []
    handle = network.one.register_forward_hook(lambda _, __, output: maps.append(output))
    number = network(images[:1])[0, 2]
    handle.remove()
    (g,) = torch.autograd.grad(number, maps[0])
    a, g, y = maps[0].detach()[0], g[0], number.detach().exp()
    whole = torch.zeros(a.shape[1:])
    for k in range(len(a)):
        weight = torch.tensor(0.0)
        for i, j in itertools.product(*map(range, a.shape[1:])):
            second, third = y * g[k, i, j] ** 2, y * g[k, i, j] ** 3
            below = 2 * second + a[k].sum() * third
            if below != 0 and g[k, i, j] > 0:
                weight += second / below * y * g[k, i, j]
        whole += weight * a[k]
    assert (g < 0).any() and (g > 0).any() and whole.max() > 0
    found = explain("grad_cam_pp", network, images[:1], 2, "one")[0, 0]
    assert torch.allclose(found * y, whole.relu(), rtol=1e-4, atol=1e-6)


def test_maps_of_one_channel_are_the_channel():
    """relu(w A) with one map: each method finds the map itself, up to a factor."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    x = torch.rand(2, 1, 4, 4)
    for method in ("grad_cam", "grad_cam_pp", "score_cam"):
        found = explain(method, model, x, 0)
        assert torch.allclose(found / found.amax((2, 3), keepdim=True), (x + 1) / (x + 1).amax((2, 3), keepdim=True))


def test_score_cam_weighs_maps_by_what_they_let_through(network, images):
    maps: list[Tensor] = []
    handle = network.one.register_forward_hook(lambda _, __, output: maps.append(output.detach()))
    network(images[:1])
    handle.remove()
    numbers = []
    for a in maps[0][0]:
        mask = (a - a.min()) / (a.max() - a.min())
        numbers.append(network(images[:1] * mask + 0.5 * (1 - mask))[0, 3])
    whole = sum(share * a for share, a in zip(torch.stack(numbers).exp(), maps[0][0], strict=True))
    expected = (whole / torch.stack(numbers).exp().sum()).relu()
    found = explain("score_cam", network, images[:1], 3, "one", baseline=0.5)[0, 0]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_give_another_explanation(method, network, images):
    """The sanity check of Adebayo et al. 2018 (arXiv:1810.03292): who explains the network changes with it."""

    def answer() -> Tensor:
        found = explain(method, network, images, 1, parts=squares(8, 2), settings=QUICK)
        return found.flatten(1) - found.flatten(1).mean(1, keepdim=True)

    before, again = answer(), answer()
    assert torch.equal(before, again)
    torch.manual_seed(9)
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)
    correlation = torch.cosine_similarity(before, answer())
    assert correlation.abs().mean() < 0.9


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.sampled])
def test_a_row_is_explained_alike_alone_and_among_others(method, network, images):
    """What is drawn depends on the row's number alone; the generators go on as if nothing had been drawn."""
    seeds = row_seeds(7, range(3), method)
    torch.manual_seed(5)
    together = explain(method, network, images, 1, parts=squares(8, 4), seeds=seeds, settings=QUICK)
    after = torch.rand(1)
    alone = [
        explain(method, network, images[r : r + 1], 1, parts=squares(8, 4), seeds=seeds[r : r + 1], settings=QUICK)
        for r in range(3)
    ]
    assert torch.equal(together, torch.cat(alone))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    other = explain(method, network, images, 1, parts=squares(8, 4), seeds=[s + 1 for s in seeds], settings=QUICK)
    if method != "kernel_shap":  # 16 coalitions are all asked
        assert not torch.equal(together, other)


def test_slopes_are_ranked_by_size_and_shares_by_sign():
    x = torch.tensor([[-3.0, 2.0]])
    assert METHODS["saliency"].ranked(x).tolist() == [[3.0, 2.0]]
    assert METHODS["integrated"].ranked(x).tolist() == [[-3.0, 2.0]]
    assert {name for name, method in METHODS.items() if method.slope} == {"saliency", "smooth", "guided"}


def test_nothing_asked_nothing_said(network):
    assert explain("integrated", network, torch.empty(0, 1, 8, 8), 1).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("method", "change", "error", "says"),
    [
        ("integral", {}, JobError, "there are saliency, smooth"),
        ("saliency", {"target": 4}, JobError, "classes 0 to 3"),
        ("saliency", {"target": -1}, JobError, "classes 0 to 3"),
        ("grad_cam", {"layer": "too"}, JobError, 'no layer "too"; did you mean two'),
        ("grad_cam", {"layer": "head"}, JobError, "a layer that gives maps"),
        ("saliency", {"x": torch.zeros(2, 3, 8, 8)}, DataError, r"does not take inputs of shape \(3, 8, 8\)"),
        ("saliency", {"x": torch.zeros(2, 1, 8, 8, dtype=torch.int64)}, DataError, "embeddings"),
        ("score_cam", {"model": linear(64, 4), "x": torch.zeros(2, 1, 8, 64)[:, 0]}, JobError, "maps are of images"),
        ("grad_cam", {"model": nn.Sequential(nn.Flatten(), linear(64, 4))}, JobError, "needs a convolution"),
        ("saliency", {"model": nn.Identity()}, JobError, "not one number a class"),
    ],
)
def test_what_cannot_be_explained_is_said(method, change, error, says, network, images):
    asked = {"model": network, "x": images, "target": 1, **change}
    if method == "score_cam":
        asked["model"] = nn.Sequential(nn.Flatten(), nn.Linear(512, 4))
    with pytest.raises(error, match=says) as found:
        explain(method, **asked)
    assert isinstance(found.value, HpcoptError)
