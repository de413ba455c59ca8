"""What layers answer to, where the answer is known."""

import h5py
import pytest
import torch
from torch import nn

from hpcopt.analysis.explain.ascent import (
    dreamt,
    features_of,
    inverted,
    maximised,
    one_class,
    one_filter,
    prototypes,
    total_variation,
    whole_layer,
)


@pytest.fixture
def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)).eval()


def test_a_linear_network_is_maximised_at_the_limits():
    model = nn.Linear(6, 3)
    found = maximised(model, model, one_class(1), torch.zeros(1, 6), (-2.0, 3.0), steps=100)
    assert torch.equal(found[0], torch.where(model.weight[1] > 0, 3.0, -2.0))


@pytest.mark.parametrize("aim", [one_filter(2), whole_layer])
def test_an_ascent_ends_higher_than_it_began(aim, network):
    start = 0.1 * torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = maximised(network, network[0], aim, start, (-1.0, 1.0), steps=20)
    assert aim(network[0](found)) > aim(network[0](start)) + 0.05
    assert found.abs().max() <= 1


def test_where_nothing_changes_the_start_is_given():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(flat[1].weight)
    start = torch.randn(1, 1, 2, 2)
    assert torch.equal(maximised(flat, flat, one_class(0), start, (-9.0, 9.0)), start)


def test_a_dream_answers_more(network):
    """Of a network that takes one size only, whose dream at smaller sizes is seen through that size."""
    image = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    found = dreamt(network, network[0], image)
    assert found.shape == image.shape
    assert whole_layer(network[0](found)) > 1.5 * whole_layer(network[0](image))


def test_an_image_is_found_again_by_a_layer_that_keeps_all():
    """An invertible layer has one image for each output; the penalties are too small to matter."""
    layer = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    image = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(inverted(layer, layer, image, torch.zeros_like(image), steps=300), image, atol=1e-2)


def test_variation_is_of_neighbours():
    assert total_variation(torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])) == 1 + 0 + 9 + 4


def test_prototypes_come_one_from_each_heap():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    features = torch.cat([c + 0.1 * torch.randn(5, 2, generator=torch.Generator().manual_seed(5)) for c in centres])
    chosen = prototypes(features, 3)
    assert sorted(row // 5 for row in chosen) == [0, 1, 2]
    assert prototypes(features, 2) == chosen[:2]
    assert len(set(prototypes(features, 15))) == 15
    assert prototypes(torch.ones(2, 3), 5) in ([0, 1], [1, 0])


def test_prototypes_lower_the_discrepancy_most():
    """Against its definition, for every candidate."""
    features = torch.randn(6, 2, generator=torch.Generator().manual_seed(6)).double()
    square = torch.cdist(features, features).square()
    kernel = torch.exp(-square / square[square > 0].median())

    def discrepancy(chosen: list[int]) -> float:
        own = kernel[chosen][:, chosen].mean()
        return float(kernel.mean() - 2 * kernel[:, chosen].mean() + own)

    chosen: list[int] = []
    for _ in range(4):
        chosen.append(min((r for r in range(6) if r not in chosen), key=lambda row: discrepancy([*chosen, row])))
    assert prototypes(features, 4) == chosen


def test_features_are_what_the_layer_gives(network):
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(features_of(network, network[0], [x]), network[0](x))


def test_every_kind_of_picture_is_made(networks):
    pytest.importorskip("captum")
    from hpcopt.analysis.explain.command import explain
    from hpcopt.comm.world import alone
    from hpcopt.explain import parser

    inputs = ["small_networks:Net", "--weights=Net.safetensors", "--inputs=Net.npy", "--rows=0:2"]
    options = parser().parse_args(
        [*inputs, "--methods=saliency", "--curves=0", "--scored=0", "--pictures=all", "--out=p.h5"]
    )
    assert explain(options, alone(), lambda: False) == 0
    with h5py.File("p.h5") as file:
        kinds = {name.rsplit("-", 1)[0] for name in file["pictures"]}
        assert kinds == {"logit", "filter", "layer", "dream", "inversion", "prototypes"}
        assert {group["image"].shape for group in file["pictures"].values()} == {(1, 1, 8, 8)}
        assert file["pictures/filter-00003"].attrs["caption"] == b"most of filter 3 of layer conv"
