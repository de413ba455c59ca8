"""A resumed preconditioner goes on under the settings of now, whatever it was saved under, or names what it refuses."""

import copy

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import CheckpointError
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from tests.solvers.kaisa.test_layers import mean_loss
from tests.solvers.kaisa.test_preconditioner import net_and_words

NET, WORDS = net_and_words(12)
BEFORE = {"damping": 0.2, "kl_clip": None, "factor_every": 1, "inverse_every": 100, "total_steps": 8}


def steps(kaisa: Kaisa, net, count: int) -> torch.Tensor:
    """Preconditioned gradients of the last of some steps, of samples that depend on the step, at fixed parameters."""
    for _ in range(count):
        net.zero_grad()
        mean_loss(net(WORDS.roll(kaisa.steps, 1)[kaisa.steps :])).backward()
        kaisa.step()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def saved(then: dict) -> tuple[dict, list[dict]]:
    """A checkpoint after three steps."""
    net = copy.deepcopy(NET)
    kaisa = Kaisa(net, alone(), **{**BEFORE, **then})
    steps(kaisa, net, 3)
    return copy.deepcopy((kaisa.state_dict(), [kaisa.rank_state_dict()]))


def resumed(now: dict, then: dict) -> tuple[Kaisa, torch.nn.Module]:
    """From a checkpoint under other settings."""
    net = copy.deepcopy(NET)
    kaisa = Kaisa(net, alone(), **{**BEFORE, **then, **now})
    kaisa.load_state_dict(*saved(then))
    return kaisa, net


LAGGING = {"inverse_lag": 2, "inverse_every": 2}
AT_ONCE = {"inverse_every": 1, "inverse_lag": 0, "refresh_tolerance": 0.0}
REMADE = [
    ({}, {"damping": 0.05}),
    ({}, {"damping": 0.05, "inverse_lag": 2}),
    (LAGGING, {"damping": 0.05}),
    ({"refresh_tolerance": 10.0}, {"damping": 0.05}),
    ({}, {"damping_final": 0.01}),
    ({"damping_final": 0.01}, {"damping_final": None}),
    ({"damping_every": 1}, {"damping": 0.1}),
    ({}, {"method": "eigen"}),
    ({"method": "eigen"}, {"method": "cholesky"}),
    ({"method": "eigen"}, {"method": "ekfac"}),
    ({"method": "ekfac"}, {"method": "eigen"}),
    ({"refresh_tolerance": 10.0}, {"method": "eigen"}),
    ({"method": "low_rank", "rank": 50}, {"rank": 60}),
    ({"method": "low_rank", "rank": 2}, {"method": "cholesky"}),
]
KEPT = [
    ({}, {}),
    ({}, {"kl_clip": 1e-6}),
    ({"kl_clip": 1e-6}, {"kl_clip": None}),
    ({}, {"graft": True}),
    ({"method": "eigen"}, {"damping": 0.05}),
    ({"method": "ekfac"}, {"damping": 0.05}),
    ({}, {"factor_decay": 0.5}),
    ({}, {"rank": 3}),
    (LAGGING, {"inverse_lag": 1}),
]


@pytest.mark.parametrize("then, now", REMADE, ids=str)
def test_what_a_changed_setting_makes_old_is_made_anew(then, now):
    """At fixed parameters both have seen the same factors, and the one that always had these settings inverts them."""
    found = steps(*resumed(now, then), 1)
    net = copy.deepcopy(NET)
    straight = Kaisa(net, alone(), **{**BEFORE, **then, **now, **AT_ONCE})
    torch.testing.assert_close(found, steps(straight, net, 4), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("then, now", KEPT, ids=str)
def test_what_no_changed_setting_makes_old_stays(then, now):
    """The inverses of the first step are in use, or those that were under way."""
    found = steps(*resumed(now, then), 1)
    net = copy.deepcopy(NET)
    straight = Kaisa(net, alone(), **{**BEFORE, **then, **now, "inverse_lag": then.get("inverse_lag", 0)})
    torch.testing.assert_close(found, steps(straight, net, 4), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["factor_every", "inverse_every"])
def test_a_changed_frequency_is_in_use(name):
    kaisa, _ = resumed({name: 7}, {})
    assert getattr(kaisa, name) == 7
    assert getattr(resumed({f"{name}_final": 20}, {})[0], name) == round(BEFORE[name] * (20 / BEFORE[name]) ** (3 / 8))
    assert getattr(resumed({name: 7}, {f"{name}_final": 9})[0], name) == round(7 * (9 / 7) ** (3 / 8))


def test_values_that_moved_stay_where_they_are_if_their_settings_do():
    """As damping that was adapted, or set in the loop."""
    net = copy.deepcopy(NET)
    kaisa = Kaisa(net, alone(), **BEFORE)
    kaisa.damping, kaisa.factor_every, kaisa.inverse_every = 0.31, 2, 5
    steps(kaisa, net, 2)
    again = Kaisa(net, alone(), **{**BEFORE, "kl_clip": 1e-3})
    again.load_state_dict(kaisa.state_dict(), [kaisa.rank_state_dict()])
    assert (again.damping, again.factor_every, again.inverse_every) == (0.31, 2, 5)


@pytest.mark.parametrize("now", [{"max_size": 4}, {"max_size": 4, "large": "blocked"}], ids=str)
def test_factors_of_another_shape_are_refused_by_the_settings_name(now):
    with pytest.raises(CheckpointError, match="made with max_size = 2048 and now has 4"):
        resumed(now, {})
    with pytest.raises(CheckpointError, match=r"no factors of conv; it was made with skip = \('conv',\)"):
        resumed({"skip": ()}, {"skip": ("conv",)})


def test_a_damaged_factor_is_refused_and_not_spread_over_a_larger_one():
    net = copy.deepcopy(NET)
    kaisa = Kaisa(net, alone(), **BEFORE)
    steps(kaisa, net, 1)
    part = copy.deepcopy(kaisa.rank_state_dict())
    part["head"]["a"] = part["head"]["a"][:, :1]
    with pytest.raises(CheckpointError, match="factors of head do not fit"):
        kaisa.load_state_dict(kaisa.state_dict(), [part])


def test_all_ranks_make_anew_together():
    expected = steps(*resumed({"method": "eigen"}, {}), 1)
    checkpoint = saved({})

    def program(t):
        net = copy.deepcopy(NET)
        kaisa = Kaisa(net, World(t), **{**BEFORE, "method": "eigen"}, fraction=0.5)
        kaisa.load_state_dict(*checkpoint)
        return steps(kaisa, net, 1)

    for found in run_ranks(3, program):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_background_work_longer_than_the_refresh_is_still_put_to_use():
    """A refresh that falls due meanwhile waits for the next time; it used to throw away what was under way."""
    net = copy.deepcopy(NET)
    kaisa = Kaisa(net, alone(), **{**BEFORE, "inverse_every": 2, "inverse_lag": 3})
    first = steps(kaisa, net, 1)
    inverses = kaisa.rank_state_dict()["head"]["inverse"].clone()
    steps(kaisa, net, 6)
    assert first.isfinite().all()
    assert not torch.equal(kaisa.rank_state_dict()["head"]["inverse"], inverses)


def test_what_was_recorded_before_a_checkpoint_is_loaded_does_not_count():
    kaisa, net = resumed({}, {})
    steps(kaisa, net, 1)
    expected = kaisa.rank_state_dict()
    kaisa, net = resumed({}, {})
    torch.autograd.grad(mean_loss(net(WORDS[:5])), list(net.parameters()))
    kaisa.load_state_dict(*saved({}))
    steps(kaisa, net, 1)
    for name, part in kaisa.rank_state_dict().items():
        torch.testing.assert_close(part["g"], expected[name]["g"], rtol=1e-12, atol=0)
