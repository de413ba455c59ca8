"""Collectors and learners: as a serial program to the bit, the same on any ranks, nothing lost and nothing twice."""

import copy

import numpy as np
import pytest
import torch

from hpcopt.errors import CheckpointError, JobError
from hpcopt.models.control.agent import Agent
from hpcopt.models.control.ofenet import OfeNetConfig
from hpcopt.optim import AdamWConfig, SgdConfig
from hpcopt.seeds import derive
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.actor_critic.prioritised import PrioritisedReplayConfig
from hpcopt.solvers.actor_critic.replay import UniformReplayConfig
from hpcopt.solvers.actor_critic.roles import Roles
from hpcopt.solvers.actor_critic.sac import SacConfig
from hpcopt.solvers.actor_critic.td3 import Td3Config
from hpcopt.testing.problem import flat, network
from tests.solvers.actor_critic.tracks import SEED, rows_of, solver, track, trained
from tests.solvers.actor_critic.worlds import Track

RANKS = pytest.mark.parametrize("size", [1, 2, 3, 5])


def serial(steps: int, warmup: int, batch_size: int) -> tuple[Agent, list[list[float]]]:
    """SAC in one loop on one track: act, remember, update. Gives the agent and all transitions."""
    context = Context(run_seed=SEED)
    agent = track().build(context).model
    method = SacConfig().build(agent, 1)
    target = copy.deepcopy(agent.critics)
    groups = [list(agent.critics.parameters()), [*agent.policy.parameters(), agent.log_temperature]]
    descents = [torch.optim.AdamW(p, lr=3e-4, weight_decay=0, fused=True) for p in groups]
    draw = np.random.default_rng(derive(context.seed("collectors"), 0, 0, "exploration"))
    generator = torch.Generator().manual_seed(context.seed("updates", 0))
    world, episode, memory = Track(), 0, []
    seen = world.reset(seed=derive(SEED, 0, 0, "episode") % 2**31)[0].astype(np.float32)
    for step in range(steps):
        if step < warmup:
            action = draw.uniform(-1, 1, 1).astype(np.float32)
        else:
            noise = torch.from_numpy(draw.standard_normal(1, np.float32))[None]
            with torch.no_grad():
                action = method.explore(agent.policy, torch.from_numpy(seen)[None], noise)[0].numpy()
        followed, reward, terminated, truncated, _ = world.step(-2 + (action + 1) * 2)
        memory.append([*seen, *action, reward, terminated, *followed])
        seen = followed.astype(np.float32)
        if terminated or truncated:
            episode += 1
            seen = world.reset(seed=derive(SEED, episode, 0, "episode") % 2**31)[0].astype(np.float32)
        if step + 1 < warmup:
            continue
        batch = torch.tensor(memory, dtype=torch.float32)[
            torch.randint(len(memory), (batch_size,), generator=generator)
        ]
        s, a, r, end, s2 = batch.split([2, 1, 1, 1, 2], 1)
        noise = torch.randn(2, batch_size, 1, generator=generator)
        with torch.no_grad():
            value = method.next_value(agent, {"critics": target}, s2, noise[0])
            aim = torch.addcmul(r[:, 0], 0.99 * (1 - end[:, 0]), value)
        agent.zero_grad()
        (0.5 * (agent.critics(torch.cat([s, a], 1)) - aim).square().sum(0).mean()).backward()
        descents[0].step()
        agent.zero_grad()
        method.policy_loss(agent, s, noise[1])[0].backward()
        descents[1].step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), agent.critics.parameters(), strict=True):
                slow.lerp_(fast, 0.005)
    return agent, memory


def test_one_rank_is_a_serial_program_to_the_bit():
    (run,) = trained(1, 30, track(), solver())
    agent, memory = serial(30, 8, 16)
    assert torch.equal(rows_of([run]), torch.tensor(memory, dtype=torch.float32))
    assert torch.equal(run.parameters, flat(agent))
    assert run.stats[6].loss is None and run.stats[7].loss > 0  # the first update is after the eighth step


@RANKS
def test_in_turns_all_ranks_do_what_one_does(size):
    """Who collects and who learns changes no transition, but for rounding of products with other numbers of rows."""
    workload, config = track(environments=4, batch=8), solver(lag=0)
    (alone,), runs = trained(1, 8, workload, config), trained(size, 8, workload, config)
    assert torch.allclose(rows_of(runs), rows_of([alone]), atol=1e-5)
    assert torch.allclose(runs[0].parameters, alone.parameters, atol=1e-5)
    assert all(torch.equal(run.parameters, runs[0].parameters) for run in runs)


@RANKS
@pytest.mark.parametrize(("lag", "publish_every"), [(0, 1), (1, 1), (3, 1), (1, 2)])
def test_what_is_collected_is_in_the_replay_once_and_the_lag_is_bounded(size, lag, publish_every):
    runs = trained(size, 9, track(environments=5, batch=5), solver(lag=lag, publish_every=publish_every))
    assert len(rows_of(runs)) == 45 == runs[0].told("env_steps")[-1]
    assert len(rows_of(runs).unique(dim=0)) == 45
    lags = runs[0].told("lag")
    assert (lags == []) if size == 1 else (max(lags) == lag + publish_every - 1 and min(lags) == 0)
    idle = [run.told("collector_idle" if rank else "learner_idle") for rank, run in enumerate(runs)]
    assert all(0 <= share <= 1 for shares in idle for share in shares) and (size == 1 or all(idle))


@pytest.mark.parametrize("size", [2, 4, 5])
def test_learners_share_their_gradients(size):
    """Two learners, apart from collectors or not, stay the same bits and have the transitions between them."""
    runs = trained(size, 6, track(environments=4, batch=8), solver(learners=2, lag=1, batch_size=17))
    learners = [run.solver._learner for run in runs[:2]]
    assert len(rows_of(runs)) == 48 == len(rows_of(runs).unique(dim=0)) and all(len(one.replay) for one in learners)
    assert all(torch.equal(run.parameters, runs[0].parameters) for run in runs)
    assert torch.equal(*(flat(learner.targets["critics"]) for learner in learners))
    assert learners[0].updates == learners[1].updates == 6


def test_an_update_of_two_learners_is_a_step_down_the_mean_of_what_both_drew():
    """Each has a single transition, of which it draws 9 and 8; nothing else is drawn at random."""
    features, rate = OfeNetConfig(layers=1, growth=4, normalise=True), 0.1
    method, workload = Td3Config(smoothing=0, policy_every=1), track(environments=2, batch=2, features=features)
    config = solver(learners=2, warmup=2, batch_size=17, method=method, optimizer=SgdConfig(lr=rate, momentum=0))
    runs = trained(2, 1, workload, config)
    agent = workload.build(Context(run_seed=SEED)).model
    targets = copy.deepcopy(agent)
    agent.features.norm.update(rows_of(runs)[:, :2])
    s, a, r, end, s2 = rows_of(runs).repeat_interleave(torch.tensor([9, 8]), 0).split([2, 1, 1, 1, 2], 1)

    def descend(part, loss):
        parameters = list(part.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.data -= rate * gradient

    descend(agent.features, agent.features.loss(s, a, s2))
    with torch.no_grad():
        z_s, next_z_s = agent.features.observe(s), agent.features.observe(s2)
        next_z_sa = agent.features.act(next_z_s, targets.policy(next_z_s)[0].tanh())
        aim = r[:, 0] + 0.99 * (1 - end[:, 0]) * targets.critics(next_z_sa).amin(0)
    descend(agent.critics, 0.5 * (agent.critics(agent.features.act(z_s, a)) - aim).square().sum(0).mean())
    descend(agent.policy, -agent.critics(agent.features.act(z_s, agent.policy(z_s)[0].tanh()))[0].mean())
    assert all(torch.allclose(run.parameters, flat(agent), atol=1e-6) for run in runs)


def test_errors_are_weighted_and_become_priorities():
    replay = PrioritisedReplayConfig(capacity=30, alpha=0.5, beta=1.0)
    (run,) = trained(1, 9, track(), solver(method=Td3Config(smoothing=0), replay=replay))
    learner = run.solver._learner
    learner.replay.learned(torch.arange(9), torch.linspace(0.1, 3, 9))
    drawn = learner.replay.draw(16, torch.Generator().manual_seed(0))
    transitions = learner._layout.read(drawn.rows)
    said = run.solver.model.critics(torch.cat([transitions.observations, transitions.actions], 1)).detach()
    errors = said - learner.aim(transitions, torch.zeros(16, 1))
    learner._generator.manual_seed(0)
    loss = learner.learn(1, 3e-4).critic_loss
    assert loss == pytest.approx(float(0.5 * (drawn.weights * errors.square().sum(0)).mean()), rel=1e-5)
    assert learner.replay._tree[drawn.places.numpy()] == pytest.approx((errors.abs().mean(0) + 1e-6).sqrt(), rel=1e-5)


def test_targets_follow_exactly():
    before = trained(1, 9, track(), solver())[0]
    (after,) = trained(1, 1, track(), solver(tau=0.25), saved=[before])
    slow = before.own["learners"]["targets"]["critics"]
    for name, fast in after.shared["model"].items():
        if (key := name.removeprefix("critics.")) in slow:
            assert torch.equal(after.own["learners"]["targets"]["critics"][key], torch.lerp(slow[key], fast, 0.25))


@RANKS
@pytest.mark.parametrize(
    "config",
    [
        solver(lag=3, publish_every=2),
        solver(method=Td3Config(), replay=PrioritisedReplayConfig(capacity=40)),
        solver(replay=UniformReplayConfig(checkpoint=False)),
    ],
    ids=["late", "td3", "rebuilt"],
)
def test_a_resumed_run_goes_on_with_the_same_bits(size, config):
    workload = track(environments=4, batch=4)
    straight = trained(size, 15, workload, config)
    before = trained(size, 6, workload, config)
    after = trained(size, 9, workload, config, saved=before)
    if config.replay.checkpoint:
        assert torch.equal(after[0].parameters, straight[0].parameters)
        assert torch.equal(rows_of(after), rows_of(straight))
    else:
        assert [stats.loss is None for stats in after[0].stats] == [True] + [False] * 8  # 8 transitions first
        assert torch.equal(rows_of(after)[:4], rows_of(straight)[24:28])  # episodes went on where they stood


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 5), (5, 2)])
def test_other_ranks_take_environments_and_replay_up(before, after):
    workload, config = track(environments=4, batch=4), solver(lag=2)
    saved = trained(before, 7, workload, config)
    runs = trained(after, 3, workload, config, saved=saved)
    assert len(rows_of(runs)) == 40 == len(rows_of(runs).unique(dim=0))
    assert torch.equal(rows_of(runs)[:28], rows_of(saved))
    assert runs[0].told("env_steps")[-1] == 40 and runs[0].parameters.isfinite().all()


def test_a_run_that_goes_on_with_another_batch_counts_on():
    saved = trained(1, 3, track(environments=2, batch=2), solver())
    (run,) = trained(1, 3, track(environments=2, batch=6), solver(warmup=24), saved=saved)
    assert run.told("env_steps") == [12, 18, 24] and [stats.loss is None for stats in run.stats] == [True, True, False]


def test_a_state_that_does_not_fit_is_refused():
    (saved,) = trained(1, 9, track(), solver())
    del saved.own["learners"]["targets"]
    with pytest.raises(CheckpointError, match="targets"):
        trained(1, 0, track(), solver(), saved=[saved])


def test_what_cannot_work_is_said_at_once():
    with pytest.raises(JobError, match="environments = 1 cannot be shared by 2"):
        trained(3, 0, track(), solver())
    with pytest.raises(JobError, match="learners = 2 do not go with 3 ranks"):
        trained(3, 0, track(environments=3, batch=3), solver(learners=2))
    with pytest.raises(ValueError, match="batch_size = 1 is less than a transition for each of 2 learners"):
        solver(learners=2, batch_size=1)
    with pytest.raises(JobError, match=r'use \[workload\] name = "control"'):
        solver().build(Task(network(), lambda *_: torch.zeros(())), Context(steps=1))
    assert Roles(2, 2, 2).collectors_of(1) == [1]


@pytest.mark.parametrize("updates", [1, 3])
def test_ranks_and_dormant_units_are_told_every_so_often_and_change_nothing(updates):
    (often,) = trained(1, 20, track(), solver(units_every=4, updates=updates))
    (never,) = trained(1, 20, track(), solver(units_every=0, updates=updates))
    assert torch.equal(often.parameters, never.parameters)
    told = [stats for stats in often.stats if "critics_rank" in stats.scalars]
    assert len(told) == 13 * updates // 4
    assert not any("critics_rank" in stats.scalars for stats in never.stats)
    for stats in told:
        ranks, dormant = (
            [stats.scalars[f"{who}_{what}"] for who in ("policy", "critics")] for what in ("rank", "dormant")
        )
        assert all(1 <= rank <= 16 for rank in ranks)
        assert all(0 <= share < 1 for share in dormant)


def test_a_rate_alone_keeps_the_optimizer():
    assert solver(optimizer={"lr": 1e-3}).optimizer == AdamWConfig(lr=1e-3, weight_decay=0.0)
    assert solver(optimizer={"name": "sgd", "lr": 1e-3}).optimizer == SgdConfig(lr=1e-3)
