"""Cuts fall where they were asked for, balance what they should, and lose no layer."""

import itertools

import pytest
import torch
from torch import nn

from hpcopt.errors import JobError
from hpcopt.models.nondifferentiable import Sign, TopK
from hpcopt.models.resnet import ResNetConfig
from hpcopt.models.vit import VitConfig
from hpcopt.pipeline.cut import balanced, cut, output_shapes

X = torch.randn(1, 4)


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def sizes(blocks: list[nn.Sequential]) -> list[int]:
    return [len(block) for block in blocks]


@pytest.mark.parametrize("options", [{}, {"blocks": 2}, {"blocks": 3, "balance": "layers"}, {"at": ["5"]}])
def test_the_blocks_in_turn_are_the_model(options):
    model = mlp()
    blocks = cut(model, X, **options)
    x = torch.randn(5, 4)
    assert torch.equal(nn.Sequential(*blocks)(x), model(x))
    assert [id(p) for block in blocks for p in block.parameters()] == [id(p) for p in model.parameters()]


def test_a_unit_is_a_layer_and_its_activation():
    assert sizes(cut(mlp(), X)) == [3, 2, 2, 1]


def test_cut_at_names():
    assert sizes(cut(mlp(), X, at=["3", "7"])) == [3, 4, 1]
    with pytest.raises(JobError, match=r"\['4'\]; it can at"):
        cut(mlp(), X, at=["4"])


def test_inner_sequentials_are_opened():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 3)))
    assert sizes(cut(model, X, at=["1.0"])) == [2, 1]


def test_cost_is_what_a_convolution_computes():
    convolution = nn.Conv2d(1, 2, 3, padding=1)  # 18 weights, each at 64 places
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 8))
    assert sizes(cut(model, torch.zeros(1, 1, 8, 8), blocks=2)) == [3, 3]
    assert sizes(cut(model, torch.zeros(1, 1, 8, 8), blocks=2, balance="layers")) == [3, 3]
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)), nn.Linear(4, 100))
    assert sizes(cut(deep, X, blocks=2)) == [6, 1]
    assert sizes(cut(deep, X, blocks=2, balance="layers")) == [3, 4]


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_no_cut_balances_better(blocks):
    weights = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]

    def worst(starts) -> float:
        edges = [*sorted(starts), len(weights)]
        return max(sum(weights[a:b]) for a, b in itertools.pairwise(edges))

    best = min(worst({0, *inner}) for inner in itertools.combinations(range(1, len(weights)), blocks - 1))
    chosen = balanced(weights, blocks)
    assert len(chosen) == blocks
    assert worst(chosen) == best


@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_what_lies_between_runs_counts_as_they_do(blocks):
    weights = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    between = [[7.0, 30.0, 6.0 + k, 20.0, 12.0 - k, 13.0, 25.0] for k in range(blocks - 1)]

    def worst(starts) -> float:
        edges = [*starts, len(weights)]
        runs = [sum(weights[a:b]) for a, b in itertools.pairwise(edges)]
        return max(*runs, *(between[k][start] for k, start in enumerate(starts[1:])))

    ways = [(0, *inner) for inner in itertools.combinations(range(1, len(weights)), blocks - 1)]
    assert worst(balanced(weights, blocks, between)) == min(map(worst, ways))


def test_layers_without_a_derivative_stand_alone():
    model = nn.Sequential(
        nn.Linear(4, 8), Sign(), nn.Linear(8, 8), nn.ReLU(), TopK(2), nn.Dropout(0.0), nn.Linear(8, 3)
    )
    assert sizes(cut(model, X, blocks=1)) == [1, 1, 2, 1, 2]


def test_a_residual_network_is_cut_between_its_blocks():
    model = ResNetConfig().build((1, 8, 8), 10)
    blocks = cut(model, torch.zeros(1, 1, 8, 8), blocks=3)
    assert len(blocks) == 3
    assert output_shapes(blocks, torch.zeros(1, 1, 8, 8))[-1] == (10,)
    assert all(m.training for m in model.modules())


def test_what_cannot_be_cut_is_refused():
    shared = nn.Linear(4, 4)
    with pytest.raises(JobError, match="share a parameter"):
        cut(nn.Sequential(shared, nn.ReLU(), shared), X)
    with pytest.raises(JobError, match="can be cut"):
        cut(nn.Linear(2, 2), X)
    with pytest.raises(JobError, match="has 4 layers"):
        cut(mlp(), X, blocks=5)


class Twice(nn.Sequential):
    """Goes through its layers twice, and so is one unit."""

    def forward(self, x):
        return super().forward(super().forward(x))


class Wrapped(nn.Module):
    """No sequence, but it knows one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def in_turn(self) -> nn.Sequential:
        return self.inner

    def forward(self, x):
        return self.inner(x)


def test_a_sequence_with_a_forward_of_its_own_is_not_opened():
    model = nn.Sequential(Twice(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3))
    blocks = cut(model, X)
    assert sizes(blocks) == [1, 1]
    assert torch.equal(nn.Sequential(*blocks)(X), model(X))
    with pytest.raises(JobError, match=r"in_turn\(\)"):
        cut(Twice(nn.Linear(4, 4)), X)


def test_a_network_that_gives_its_layers_in_turn_is_cut():
    model = Wrapped()
    blocks = cut(model, X, blocks=2)
    assert len(blocks) == 2
    assert torch.equal(nn.Sequential(*blocks)(X), model(X))


def test_a_transformer_is_cut_between_its_layers():
    model = VitConfig(patch=4, layers=3, width=8, heads=2).build((1, 8, 8), 10)
    example = torch.zeros(1, 1, 8, 8)
    blocks = cut(model, example)
    assert output_shapes(blocks, example) == [(4, 8)] * 4 + [(8,)] + [(10,)]
    with pytest.raises(ValueError, match="does not divide images"):
        VitConfig(patch=3).build((1, 8, 8), 10)


def test_blocks_that_give_no_row_a_sample_are_refused():
    with pytest.raises(JobError, match="block 0 gives shape"):
        output_shapes([nn.Flatten(0)], X)
