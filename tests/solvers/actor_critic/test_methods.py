"""SAC's and TD3's losses by hand, ends of episodes, and features that the losses leave alone."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from hpcopt.models.control.ofenet import OfeNetConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.simulation import Transitions
from hpcopt.solvers.actor_critic.sac import SacConfig, sampled
from hpcopt.solvers.actor_critic.td3 import Td3Config
from tests.solvers.actor_critic.tracks import SEED, rows_of, solver, track, trained


def agent_of(**settings):
    return track(**settings).build(Context(run_seed=SEED)).model


def test_densities_are_those_of_a_gaussian_through_a_tanh():
    torch.manual_seed(0)
    mean, log_std, noise = torch.randn(3, 50, 2, dtype=torch.float64)
    action, log_density = sampled(mean, log_std, noise)
    gaussian = Independent(Normal(mean, log_std.exp()), 1)
    expected = TransformedDistribution(gaussian, TanhTransform())
    near = action.abs().amax(1) < 0.999  # elsewhere the inverse of the tanh is not what it was
    assert near.sum() > 30 and torch.allclose(log_density[near], expected.log_prob(action)[near])
    far = sampled(torch.full((1, 1), 30.0), torch.zeros(1, 1), torch.zeros(1, 1))[1]
    assert float(far) == pytest.approx(2 * 30 - 2 * math.log(2) - 0.5 * math.log(2 * math.pi), rel=1e-5)


def test_sac_by_hand():
    """Each sample by itself, in double precision, by the paper's formulas."""
    agent = agent_of().double()
    method = SacConfig(temperature=0.3, target_entropy=-0.5).build(agent, 1)
    target = agent_of().double().critics
    torch.manual_seed(1)
    for p in target.parameters():
        p.data += 0.3 * torch.randn_like(p)
    s, noise = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    value = method.next_value(agent, {"critics": target}, s, noise)
    loss, policy_loss = method.policy_loss(agent, s, noise)
    losses, entropies = [], []
    for n in range(6):
        mean, log_std = (float(x.detach()) for x in agent.policy(s[n : n + 1]))
        u = mean + math.exp(log_std) * float(noise[n])
        log_density = -0.5 * float(noise[n]) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        log_density -= math.log(1 - math.tanh(u) ** 2)
        z = torch.tensor([[*s[n].tolist(), math.tanh(u)]], dtype=torch.float64)
        slow, fast = (min(critics(z).flatten().tolist()) for critics in (target, agent.critics))
        assert float(value[n].detach()) == pytest.approx(slow - 0.3 * log_density)
        losses.append(0.3 * log_density - fast)
        entropies.append(log_density)
    assert float(policy_loss.detach()) == pytest.approx(sum(losses) / 6)
    temperature_loss = -math.log(0.3) * (sum(entropies) / 6 - 0.5)
    assert float((loss - policy_loss).detach()) == pytest.approx(temperature_loss)
    (gradient,) = torch.autograd.grad(loss, agent.log_temperature)
    assert float(gradient) == pytest.approx(-(sum(entropies) / 6 - 0.5))


def test_td3_by_hand():
    agent = agent_of()
    method = Td3Config(smoothing=0.5, smoothing_clip=0.2, exploration=3.0).build(agent, 1)
    s, noise = torch.randn(9, 2), torch.linspace(-2, 2, 9)[:, None]
    mean = agent.policy(s)[0].tanh()
    value = method.next_value(agent, {"critics": agent.critics, "policy": agent.policy}, s, noise)
    action = (mean + (0.5 * noise).clip(-0.2, 0.2)).clip(-1, 1)
    assert torch.allclose(value, agent.critics(torch.cat([s, action], 1)).amin(0))
    assert torch.allclose(method.policy_loss(agent, s, noise)[0], -agent.critics(torch.cat([s, mean], 1))[0].mean())
    explored = method.explore(agent.policy, s, noise).detach()
    assert torch.equal(explored, (mean + 3 * noise).clip(-1, 1)) and float(explored.abs().max()) == 1
    (run,) = trained(1, 14, track(), solver(method=Td3Config()))
    moved = [math.isfinite(stats.scalars["actor_loss"].value) for stats in run.stats[7:]]
    assert moved == [False, True, False, True, False, True, False]


def test_only_what_terminated_is_worth_nothing_more():
    """Time that is up ends an episode, and not what could have been gained."""
    (run,) = trained(1, 60, track(), solver())
    rows = rows_of([run])
    s, a, r, end, s2 = rows.split([2, 1, 1, 1, 2], 1)
    last = s[1:, 1] == 0  # the next row is the beginning of an episode
    fell, over = s2[:-1, 0].abs() > 2, s2[:-1, 1] == 1
    assert torch.equal(last, fell | over) and (fell & ~over).any() and (over & ~fell).any()
    assert torch.equal(end[:-1, 0] == 1, fell)
    assert torch.equal(s2[:-1][~last], s[1:][~last])  # and where one goes on, the next row begins there
    noise = torch.zeros(len(rows), 1)
    aim = run.solver._learner.aim(Transitions(s, a, r[:, 0], end[:, 0], s2), noise)
    ended = end[:, 0] == 1
    assert torch.equal(aim[ended], r[:, 0][ended]) and not torch.isclose(aim[~ended], r[:, 0][~ended]).any()


def test_features_and_losses_leave_each_other_alone():
    agent = agent_of(features=OfeNetConfig(layers=2, growth=4))
    assert agent.features.widths == (10, 19)
    method = SacConfig().build(agent, 1)
    s, a, noise = torch.randn(5, 2), torch.randn(5, 1), torch.randn(5, 1)
    z_s = agent.features.observe(s)
    (0 * agent.critics(agent.features.act(z_s, a)).mean() + method.policy_loss(agent, z_s, noise)[0]).backward()
    assert all(p.grad is None for p in agent.features.parameters())
    agent.zero_grad()
    (-agent.critics(agent.features.act(z_s, agent.policy(z_s)[0].tanh())).mean()).backward()
    assert agent.policy.head.weight.grad.any()  # what the critics say reaches the policy through the features
    agent.zero_grad()
    agent.features.loss(s, a, s).backward()
    assert all(p.grad is None for p in (*agent.policy.parameters(), *agent.critics.parameters()))


def test_features_keep_their_bits_in_updates_of_actor_and_critics(monkeypatch):
    workload = track(features=OfeNetConfig(layers=2, growth=4, normalise=True))
    (run,) = trained(1, 9, workload, solver(pretraining=3))
    agent, learner = run.solver.model, run.solver._learner
    assert agent.features.norm.count == 10
    features, rest = list(agent.features.parameters()), [*agent.policy.parameters(), *agent.critics.parameters()]
    before, rest_before = [p.clone() for p in features], [p.clone() for p in rest]
    learner.prepare(3, 3e-4)
    assert all(map(torch.equal, rest, rest_before)) and not any(map(torch.equal, features, before))
    before = [p.clone() for p in features]
    monkeypatch.setattr(learner, "_learn_features", lambda *_: None)
    learner.learn(3, 3e-4)
    assert all(map(torch.equal, features, before)) and not any(map(torch.equal, rest, rest_before))
