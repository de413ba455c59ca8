"""Parameters by pattern: each in one group, by the group's rate, decay or optimizer."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.errors import JobError
from hpcopt.optim import (
    AdamWConfig,
    AnyTorchConfig,
    ArsgConfig,
    LambConfig,
    OptimizerConfig,
    RsgConfig,
    SgdConfig,
    SignumConfig,
)
from hpcopt.optim.by_pattern import GroupConfig, assigned, build_by_pattern, describe
from hpcopt.optim.groups import set_learning_rate

NAMES = ["body.0.weight", "body.0.bias", "head.weight", "head.bias"]


def named():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (4,), (4, 2), (2,)]
    return [(n, nn.Parameter(torch.randn(s, generator=generator))) for n, s in zip(NAMES, shapes, strict=True)]


def moved(config, groups, lr=0.1, steps=3):
    """How far each parameter went."""
    pairs = named()
    optimizer = build_by_pattern(config, groups, pairs)
    for step in range(steps):
        for i, (_, p) in enumerate(pairs):
            p.grad = torch.sin(torch.arange(p.numel()) + i + step).view_as(p)
        set_learning_rate(optimizer, lr)
        optimizer.step()
    return {name: p.detach() for name, p in pairs}


def test_the_first_match_has_a_parameter():
    groups = [GroupConfig(pattern="head.*", lr=1), GroupConfig(pattern="*.bias", lr=2)]
    assert assigned(groups, NAMES) == {"head.weight": 0, "head.bias": 0, "body.0.bias": 1}


@pytest.mark.parametrize(
    ("patterns", "complaint"),
    [
        (["*.wieght", "*"], r'"\*.wieght" matches no parameter; the nearest are'),
        (["haed.bias"], "nearest are head.bias, body.0.bias"),
        (["head.*", "head.bias"], r'"head.bias" is left without parameters: .* groups before it, "head.\*"'),
    ],
)
def test_a_pattern_without_parameters_is_an_error(patterns, complaint):
    with pytest.raises(JobError, match=complaint):
        assigned([GroupConfig(pattern=p, lr=1) for p in patterns], NAMES)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "say what is different"),
        ({"lr": 1, "lr_factor": 1}, "not both"),
        ({"lr": 1, "optimizer": {"name": "sgd"}}, "lr of these stands in the optimizer's own section"),
        ({"lr": -1}, "greater than 0"),
        ({"optimizer": {"name": "sdg"}}, 'did you mean "sgd"'),
    ],
)
def test_a_group_says_something_once(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        GroupConfig(pattern="*", **settings)


CONFIGS = [
    SgdConfig(lr=0.1, weight_decay=0.1),
    AdamWConfig(lr=0.1),
    LambConfig(lr=0.1),
    RsgConfig(lr=0.1),
    ArsgConfig(lr=0.1),
    SignumConfig(lr=0.1),
    AnyTorchConfig(type="torch.optim:Muon", lr=0.1, others=AdamWConfig(lr=0.1)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_groups_move_as_if_the_whole_had_their_settings(config):
    """Each parameter goes where it goes when all have the settings of its group."""
    groups = [GroupConfig(pattern="*.bias", lr=0.03), GroupConfig(pattern="head.*", lr_factor=2, weight_decay=0.5)]
    got, plain = moved(config, groups), moved(config, [])
    biases, head = moved(config, groups[:1]), moved(config, [GroupConfig(pattern="*", lr_factor=2, weight_decay=0.5)])
    assert torch.equal(got["body.0.weight"], plain["body.0.weight"])
    assert torch.equal(got["head.weight"], head["head.weight"])
    assert torch.equal(got["head.bias"], biases["head.bias"])
    assert not torch.equal(got["head.weight"], plain["head.weight"])
    if not isinstance(config, AnyTorchConfig):  # whose rate is another's there
        slow = moved(config, [], lr=0.1 * (0.03 / config.lr))
        assert torch.equal(got["body.0.bias"], slow["body.0.bias"])


def test_another_optimizer_has_a_group():
    own = AdamWConfig(lr=0.05, weight_decay=0.3)
    got = moved(SgdConfig(lr=0.1), [GroupConfig(pattern="head.*", optimizer=own)])
    plain, adam = moved(SgdConfig(lr=0.1), []), moved(own, [], lr=0.05)
    assert torch.equal(got["body.0.weight"], plain["body.0.weight"])
    torch.testing.assert_close(got["head.weight"], adam["head.weight"])


def test_a_group_may_take_all():
    got = moved(SgdConfig(lr=0.1), [GroupConfig(pattern="*", optimizer=AdamWConfig(lr=0.1))])
    assert all(torch.equal(x, y) for x, y in zip(got.values(), moved(AdamWConfig(lr=0.1), []).values(), strict=True))


def test_an_optimizer_without_decay_says_so():
    with pytest.raises(JobError, match="Rprop has no weight_decay"):
        moved(AnyTorchConfig(type="torch.optim:Rprop"), [GroupConfig(pattern="*", weight_decay=0.1)])


def test_the_groups_are_counted():
    pairs = named()
    optimizer = build_by_pattern(AdamWConfig(), [GroupConfig(pattern="*.bias", lr_factor=2)], pairs)
    assert describe(optimizer, pairs).splitlines() == [
        "AdamW, rate x 1, decay 0.01: 2 tensors, 20 values, body.0.weight to head.weight",
        "AdamW, rate x 2, decay 0: 2 tensors, 6 values, body.0.bias to head.bias",
    ]


@pytest.mark.parametrize("groups", [None, 5, [5], [{}], [{"params": 3}], [{"params": [nn.Parameter(torch.ones(3))]}]])
def test_an_optimizer_without_groups_of_its_parameters_is_one_message(groups):
    class Forgetful(torch.optim.Optimizer):
        def __init__(self, parameters):
            if groups is not None:
                self.param_groups = groups

        def step(self, closure=None):
            return None

    class Mine(OptimizerConfig):
        lr: float = 0.1

        def build(self, parameters):
            return Forgetful(parameters)

    with pytest.raises(JobError, match=r"Forgetful has no param_groups of the parameters .* super\(\).__init__"):
        build_by_pattern(Mine(), (), [("p", nn.Parameter(torch.zeros(3)))])
