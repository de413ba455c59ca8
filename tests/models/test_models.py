"""Networks have the shapes and sizes of their papers; a sample's result does not depend on others in its batch."""

import pytest
import torch

from hpcopt.models.mlp import MlpConfig
from hpcopt.models.resnet import ResNetConfig


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_mlp():
    model = MlpConfig(hidden=(20, 30), activation="tanh").build((1, 8, 8), 10)
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert parameters(model) == 64 * 20 + 20 + 20 * 30 + 30 + 30 * 10 + 10


def test_an_mlp_without_hidden_layers_is_linear():
    model = MlpConfig(hidden=()).build((4,), 3)
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(model(x + y) + model(torch.zeros(2, 4)), model(x) + model(y))


@pytest.mark.parametrize("side", [8, 28, 32])
def test_resnet_takes_small_images_of_any_size(side):
    model = ResNetConfig(blocks=1, width=8).build((3, side, side), 10)
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 10)


def test_resnet20_has_the_papers_size():
    # 0.27 M in the paper's table 6, with parameter-free shortcuts; ours are 1x1 convolutions
    shortcuts = 16 * 32 + 32 * 64
    assert parameters(ResNetConfig(blocks=3).build((3, 32, 32), 10)) == 269_722 + shortcuts


def test_samples_do_not_see_each_other():
    torch.manual_seed(0)
    model = ResNetConfig().build((1, 8, 8), 10)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(model(x)[2:], model(x[2:]))
