"""Bodies and features of reinforcement learning: sizes, what gradients reach, ensembles against their members."""

import pytest
import torch
from torch.nn import functional

from hpcopt.models.control.features import NoFeaturesConfig
from hpcopt.models.control.ofenet import OfeNetConfig
from hpcopt.models.control.perceptrons import DenseMlpBodyConfig, MlpBodyConfig
from hpcopt.models.control.running_norm import RunningNorm
from hpcopt.models.control.simba import SimbaBodyConfig

BODIES = [MlpBodyConfig(width=7, depth=3), DenseMlpBodyConfig(width=7, depth=3), SimbaBodyConfig(width=8, depth=2)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("config", "width"), [(BODIES[0], 7), (BODIES[1], 5 + 3 * 7), (BODIES[2], 8)], ids=["mlp", "dense", "simba"]
)
def test_widths(config, width):
    body = config.build(5)
    assert body.width == width
    assert body(torch.randn(4, 5)).shape == (4, width)
    assert config.build(5, ensemble=2)(torch.randn(4, 5)).shape == (2, 4, width)


def test_dense_layers_hand_on_what_came_in():
    body, x = DenseMlpBodyConfig(width=3, depth=2).build(2), torch.randn(4, 2)
    first, second = body.layers
    h = torch.cat([functional.silu(first(x)), x], 1)
    torch.testing.assert_close(body(x), torch.cat([functional.silu(second(h)), h], 1))


def test_a_block_without_weights_hands_on_and_the_end_is_normed():
    body, x = SimbaBodyConfig(width=6, depth=2).build(3), torch.randn(4, 3)
    for block in body.blocks:
        torch.nn.init.zeros_(block.narrow.weight)
    out = body(x)
    torch.testing.assert_close(out, functional.layer_norm(body.first(x), (6,)))
    weight = body.first.weight.detach()  # (6, 3): orthonormal columns
    torch.testing.assert_close(weight.T @ weight, torch.eye(3))


@pytest.mark.parametrize("config", BODIES, ids=lambda config: config.name)
def test_an_ensemble_is_its_members(config):
    """Each has weights of its own, and gives what a network of its own with these weights gives, and its gradients."""
    stacked, single = config.build(5, ensemble=2), config.build(5)
    assert all(
        not torch.equal(p[0], p[1]) for name, p in stacked.named_parameters() if p.dim() == 3 and "layers" in name
    )
    x, shared = torch.randn(2, 4, 5), torch.randn(4, 5)
    torch.testing.assert_close(stacked(shared), stacked(shared.expand(2, -1, -1)))
    out = stacked(x)
    out.square().sum().backward()
    for member in range(2):
        with torch.no_grad():
            for mine, theirs in zip(single.parameters(), stacked.parameters(), strict=True):
                mine.copy_(theirs[member].mT.reshape(mine.shape))
        single.zero_grad()
        alone = single(x[member])
        torch.testing.assert_close(out[member], alone)
        alone.square().sum().backward()
        for mine, theirs in zip(single.parameters(), stacked.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad[member].mT.reshape(mine.shape), mine.grad)


@pytest.mark.parametrize("config", BODIES, ids=lambda config: config.name)
def test_members_begin_as_a_network_alone_does(config):
    """Spread of the first weights, by layer."""
    wide = config.model_copy(update={"width": 200})
    stacked, single = wide.build(100, ensemble=3), wide.build(100)
    for theirs, mine in zip(stacked.parameters(), single.parameters(), strict=True):
        if mine.dim() == 2:
            assert theirs.detach().std().item() == pytest.approx(mine.detach().std().item(), rel=0.05)


def test_no_features_are_the_vectors_themselves():
    features, s, a = NoFeaturesConfig().build(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    assert features.widths == (3, 5)
    assert torch.equal(features.act(features.observe(s), a), torch.cat([s, a], 1))
    assert features.loss(s, a, s) is None
    assert not list(features.parameters())


def transitions(n=16):
    return torch.randn(n, 3), torch.randn(n, 2), torch.randn(n, 3)


@pytest.mark.parametrize(("layers", "growth"), [(6, 40), (8, 30)])
def test_ofenet_grows_by_layers_times_growth(layers, growth):
    features = OfeNetConfig(layers=layers, growth=growth).build(11, 3)
    assert features.widths == (11 + 240, 11 + 240 + 3 + 240)
    z_s = features.observe(torch.randn(4, 11))
    assert features.act(z_s, torch.randn(4, 3)).shape == (4, 494)


def test_ofenet_is_its_formula():
    features, (s, a, next_s) = OfeNetConfig(layers=2, growth=4, activation="tanh").build(3, 2), transitions()

    def tower(x, module):
        for layer in module.layers:
            x = torch.cat([x, torch.tanh(functional.layer_norm(layer(x), (4,)))], 1)
        return x

    z_s = tower(s, features.on_observations)
    z_sa = tower(torch.cat([z_s, a], 1), features.on_actions)
    torch.testing.assert_close(features.act(features.observe(s), a), z_sa)
    torch.testing.assert_close(features.loss(s, a, next_s), (features.prediction(z_sa) - next_s).square().mean())
    torch.testing.assert_close(features.prediction_error(s, a, next_s), features.loss(s, a, next_s).detach())


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_losses_of_actor_and_critic_leave_ofenet_bitwise_as_it_is_and_reach_the_action(norm):
    features = OfeNetConfig(layers=2, growth=4, norm=norm).build(3, 2).double()
    s, a, next_s = (each.double() for each in transitions())
    features.loss(s, a, next_s)  # statistics of a BatchNorm are no longer those of the beginning
    features.train()
    before = {name: value.clone() for name, value in features.state_dict().items()}
    critic, action = torch.nn.Linear(features.widths[1], 1).double(), a.clone().requires_grad_()

    def value(a):
        return critic(features.act(features.observe(s), a)).sum()

    direction = torch.randn_like(a)
    with torch.no_grad():
        slope = (value(a + 1e-6 * direction) - value(a - 1e-6 * direction)) / 2e-6
    optimizer = torch.optim.Adam([*critic.parameters(), *features.parameters()], lr=0.1)
    value(action).backward()
    optimizer.step()
    torch.testing.assert_close((action.grad * direction).sum(), slope, rtol=1e-6, atol=1e-6)
    assert bool(critic.weight.grad.any())
    assert all(p.grad is None for p in features.parameters())
    assert all(torch.equal(before[name], value) for name, value in features.state_dict().items())


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_its_own_loss_reaches_every_weight_and_nothing_outside(norm):
    features, (s, a, next_s) = OfeNetConfig(layers=2, growth=4, norm=norm).build(3, 2), transitions()
    action = a.clone().requires_grad_()
    before = {name: value.clone() for name, value in features.named_buffers()}
    features.eval()
    features.loss(s, action.detach(), next_s).backward()
    assert all(
        p.grad is not None and bool(p.grad.any()) for name, p in features.named_parameters() if "bias" not in name
    )
    assert action.grad is None
    moved = [not torch.equal(before[name], value) for name, value in features.named_buffers() if "running" in name]
    assert all(moved) and bool(moved) == (norm == "batch")


def test_running_norm_is_the_mean_and_variance_of_all():
    norm, seen = RunningNorm(3), torch.randn(50, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([5.0, -300.0, 0.0])
    for part in seen.split([1, 7, 0, 42]):
        norm.update(part)
    # as if one observation of mean 0 and variance 1 were there: rows of +1 and -1, half a row each
    rows = torch.cat([seen.double(), torch.ones(1, 3), -torch.ones(1, 3)])
    weights = torch.tensor([1.0] * 50 + [0.5] * 2, dtype=torch.float64)[:, None] / 51
    mean = (weights * rows).sum(0)
    variance = (weights * (rows - mean).square()).sum(0)
    torch.testing.assert_close(norm.mean, mean)
    torch.testing.assert_close(norm(seen), ((seen - mean) / variance.sqrt()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_that_add_their_moments_hold_the_statistics_of_one(ranks):
    serial, many, seen = RunningNorm(2), RunningNorm(2), torch.randn(2, 30, 2) * 9 + 4
    for part in seen:
        serial.update(part)
        many.merge(sum(many.moments(mine) for mine in part.tensor_split(ranks)))
    for name, value in serial.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value, rtol=1e-6, atol=1e-9)


def test_features_see_scaled_observations_and_predict_them():
    features, (s, a, next_s) = OfeNetConfig(layers=1, growth=4, normalise=True).build(3, 2), transitions()
    features.norm.update(100 + 7 * s)
    plain = OfeNetConfig(layers=1, growth=4).build(3, 2)
    plain.load_state_dict({k: v for k, v in features.state_dict().items() if not k.startswith("norm")})
    norm = features.norm
    torch.testing.assert_close(features.loss(s, a, next_s), plain.loss(norm(s), a, norm(next_s)))
    torch.testing.assert_close(features.observe(s), plain.observe(norm(s)))
