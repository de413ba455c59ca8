"""An optimizer goes on from a checkpoint under its own settings, with the saved state, and never from another's."""

import copy

import pytest
import torch

from hpcopt.errors import CheckpointError
from hpcopt.optim.lamb import Lamb
from hpcopt.optim.signum import Signum
from hpcopt.optim.state import optimizer_state, restore_optimizer

SETTINGS = {
    torch.optim.SGD: ({"lr": 0.1, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.5, "nesterov": True}),
    torch.optim.AdamW: ({"betas": (0.9, 0.999)}, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.5}),
    Lamb: ({"betas": (0.9, 0.999)}, {"betas": (0.8, 0.9), "weight_decay": 0.5}),
    Signum: ({"momentum": 0.9}, {"momentum": 0.5}),
}


def stepped(kind, settings, x, steps):
    optimizer = kind([x], **settings)
    for _ in range(steps):
        x.grad = torch.sin(x.detach())
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", SETTINGS)
def test_changed_settings_take_effect_on_the_saved_state(kind):
    """As if the running optimizer's own settings had been changed."""
    old, new = SETTINGS[kind]
    x = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    before = stepped(kind, old, x, 3)
    y = x.detach().clone().requires_grad_()
    resumed = kind([y], **new)
    restore_optimizer(resumed, copy.deepcopy(optimizer_state(before)))
    before.param_groups[0].update(new)
    for optimizer, p in ((before, x), (resumed, y)):
        p.grad = torch.cos(p.detach())
        optimizer.step()
    assert torch.equal(x, y)
    for key, value in new.items():
        assert resumed.param_groups[0][key] == value


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("theirs", SETTINGS)
@pytest.mark.parametrize("ours", SETTINGS)
def test_another_optimizers_state_is_refused_by_name(ours, theirs, named):
    x = torch.ones(2, 3, requires_grad=True)
    saved = optimizer_state(stepped(theirs, SETTINGS[theirs][0], x, 1))
    if not named:  # a checkpoint of before
        del saved["optimizer"]
    optimizer = ours([x], **SETTINGS[ours][0])
    if ours is theirs:
        restore_optimizer(optimizer, saved)
        return
    with pytest.raises(
        CheckpointError, match=f"optimizer {theirs.__name__ if named else 'with other settings'}.*--fresh"
    ):
        restore_optimizer(optimizer, saved)


@pytest.mark.parametrize("saved", [None, 3, {}, {"param_groups": 1}, {"param_groups": [3], "state": {}}, {"state": {}}])
def test_what_is_no_state_is_refused(saved):
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_optimizer(optimizer, saved)


class Counting(torch.optim.SGD):
    """It keeps what is of no parameter, as torch allows."""

    def step(self, closure=None):
        self.state["all"]["steps"] = self.state["all"].get("steps", 0) + 1
        return super().step(closure)


def test_what_is_of_no_parameter_comes_back_and_hooks_are_called():
    x, called = torch.ones(2, 3, requires_grad=True), []
    saved = copy.deepcopy(optimizer_state(stepped(Counting, {"lr": 0.1, "momentum": 0.9}, x, 3)))
    resumed = Counting([x], lr=0.1, momentum=0.9)
    resumed.register_load_state_dict_pre_hook(lambda _, state: called.append(sorted(state)))
    resumed.register_load_state_dict_post_hook(lambda own: called.append(own.state["all"]["steps"]))
    restore_optimizer(resumed, saved)
    assert called == [["param_groups", "state"], 3]
    assert resumed.state["all"] == {"steps": 3}
    assert torch.equal(resumed.state[x]["momentum_buffer"], saved["state"][0]["momentum_buffer"])


def test_a_state_for_another_number_of_parameters_is_refused():
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    saved = optimizer_state(stepped(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, x, 1))
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_optimizer(torch.optim.SGD([x, y], lr=0.1, momentum=0.9), saved)
