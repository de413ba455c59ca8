"""Networks of the paper's vision workloads: published sizes, shapes, and samples that do not see each other."""

import pytest
import torch

from hpcopt.models.deep_resnet import DeepResNetConfig
from hpcopt.models.unet import UNetConfig


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "published"), [(18, 11_689_512), (50, 25_557_032)])
def test_resnets_have_the_published_sizes(depth, published):
    with torch.device("meta"):
        model = DeepResNetConfig(depth=depth).build((3, 224, 224), 1000)
        x = model[:-3](torch.zeros(2, 3, 224, 224))
    assert parameters(model) == published
    assert x.shape == (2, 512 if depth == 18 else 2048, 7, 7)


def test_a_residual_block_starts_as_its_shortcut():
    model = DeepResNetConfig(depth=18).build((3, 32, 32), 10)
    x = torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(model[4](x), x)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("depth", [1, 3])
def test_a_mask_is_as_large_as_its_image(depth):
    model = UNetConfig(depth=depth, width=4).build((3, 24, 16), 2)
    assert model(torch.zeros(2, 3, 24, 16)).shape == (2, 2, 24, 16)


def test_unet_sees_near_and_far():
    torch.manual_seed(0)
    model = UNetConfig(depth=2, width=8).build((1, 32, 32), 1)
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    model(x)[0, 0, 16, 16].backward()
    assert x.grad[0, 0, 16, 16] != 0
    assert x.grad[0, 0, 8, 8].abs() > 0


def test_unet_samples_do_not_see_each_other():
    torch.manual_seed(0)
    model = UNetConfig(depth=2, width=4).build((1, 16, 16), 1)
    x = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(model(x)[2:], model(x[2:]))


def test_unet_refuses_sizes_that_do_not_halve():
    with pytest.raises(ValueError, match="do not halve 3 times"):
        UNetConfig(depth=3).build((1, 28, 28), 1)
