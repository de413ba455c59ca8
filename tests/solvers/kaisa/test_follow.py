"""What a program does to a model after K-FAC was made for it: taken over, or refused in a sentence."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from hpcopt.comm.world import alone
from hpcopt.errors import JobError
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from tests.solvers.kaisa.test_layers import mean_loss
from tests.solvers.kaisa.test_preconditioner import Net, net_and_words

SETTINGS = {"damping": 0.2, "kl_clip": None, "factor_every": 1, "inverse_every": 1}


def step(net: nn.Module, kaisa: Kaisa, x: torch.Tensor) -> dict[str, torch.Tensor]:
    net.zero_grad()
    mean_loss(net(x)).backward()
    kaisa.step()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("steps_before", [0, 1])
def test_parameters_that_were_assigned_are_taken_over(steps_before):
    net, x = net_and_words()
    expected_net, found_net = copy.deepcopy(net), copy.deepcopy(net)
    expected, found = (Kaisa(n, alone(), **SETTINGS) for n in (expected_net, found_net))
    for _ in range(steps_before):
        step(expected_net, expected, x)
        step(found_net, found, x)
    torch.manual_seed(5)
    other = {name: value + 0.1 * torch.randn_like(value) for name, value in net.state_dict().items()}
    expected_net.load_state_dict(copy.deepcopy(other))
    found_net.load_state_dict(other, assign=True)
    assert found_net.head.weight is not found.layers.found[-1].weight
    one, two = step(found_net, found, x), step(expected_net, expected, x)
    for name in two:
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=0)
    assert found.cosines["attention.in_proj"] < 0.9999


def double(net: Net) -> None:
    net.double()


def prune_head(net: Net) -> None:
    prune.l1_unstructured(net.head, "weight", 0.5)


def widen(net: Net) -> None:
    net.head.weight = nn.Parameter(torch.randn(6, 9))
    net.head.bias = nn.Parameter(torch.randn(6))


@pytest.mark.parametrize(
    "change, message",
    [
        (double, r"words\.weight is .* in double precision .* was .* in single or half .* make Kaisa after"),
        (prune_head, r"head\.weight is computed from other parameters and was"),
        (widen, r"head\.(weight|bias) is \(6, 9\) .* was \(5, 9\)"),
    ],
)
@pytest.mark.parametrize("due", [True, False])
def test_what_needs_other_buffers_is_refused(change, message, due):
    """At the next forward pass that would count, or at the step."""
    net, x = net_and_words(dtype=torch.float32)
    kaisa = Kaisa(net, alone(), **{**SETTINGS, "factor_every": 1 if due else 5, "inverse_every": 5})
    step(net, kaisa, x)
    change(net)
    with pytest.raises(JobError, match=message):
        step(net, kaisa, x)


def test_an_unfrozen_layer_is_refused_unless_it_was_left_to_the_inner_optimizer():
    net, x = net_and_words()
    net.conv.requires_grad_(False)
    kaisa = Kaisa(net, alone(), **SETTINGS)
    assert kaisa.layers.skipped["conv"] == "frozen"
    step(net, kaisa, x)
    net.conv.requires_grad_(True)
    with pytest.raises(JobError, match=r"conv\.weight was frozen when Kaisa was made .* skip = \['conv'\]"):
        step(net, kaisa, x)
    kaisa.remove()
    assert "conv" in [layer.name for layer in Kaisa(copy.deepcopy(net), alone()).layers.found]
    net.conv.requires_grad_(False)
    kaisa = Kaisa(net, alone(), skip=("conv",), **SETTINGS)
    net.conv.requires_grad_(True)
    assert "conv.weight" in step(net, kaisa, x)


def test_a_layer_frozen_later_stays_as_it_is_and_the_others_go_on():
    net, x = net_and_words()
    kaisa = Kaisa(net, alone(), **SETTINGS)
    step(net, kaisa, x)
    net.conv.requires_grad_(False)
    found = step(net, kaisa, x)
    assert "conv.weight" not in found
    kaisa.remove()
    expected = step(net, Kaisa(net, alone(), **SETTINGS), x)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-13)


def test_removed_it_leaves_no_hook():
    net, x = net_and_words()
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())  # noqa: E731
    before = hooks()
    kaisa = Kaisa(net, alone(), **SETTINGS)
    assert hooks() > before
    kaisa.remove()
    assert hooks() == before
    mean_loss(net(x)).backward()
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())


def test_half_precision_later_is_no_other_kind():
    net, x = net_and_words(dtype=torch.float32)
    kaisa = Kaisa(net, alone(), **SETTINGS)
    expected = step(net, kaisa, x)
    net.bfloat16()
    found = step(net, kaisa, x)
    assert found["head.weight"].dtype == torch.bfloat16
    gap = (found["head.weight"].float() - expected["head.weight"]).norm() / expected["head.weight"].norm()
    assert gap < 0.1
