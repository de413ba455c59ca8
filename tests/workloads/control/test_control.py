"""Environments by name, episodes that begin again where they stood, evaluation, and processes that are lost."""

import os
import signal

import numpy as np
import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import EXIT_BAD_INPUT, DataError, HpcoptError, JobError
from hpcopt.models.control.perceptrons import MlpBodyConfig
from hpcopt.shapes.context import Context
from hpcopt.testing.workload import built, check_same_start, check_scores
from hpcopt.trainer.loop import evaluate
from hpcopt.workloads.control.maker import EnvironmentConfig, Maker
from hpcopt.workloads.control.workload import ControlConfig
from tests.solvers.actor_critic.tracks import TRACK, solver, task_of, track, trained
from tests.solvers.actor_critic.worlds import Track

ODD = "tests.solvers.actor_critic.worlds:Odd"


def opened(numbers=(0,), **settings):
    return track(environments=5, batch=5, **settings).build(Context(run_seed=1)).simulation().make(numbers)


def rows(episodes, steps, seed=0):
    draw, made = np.random.default_rng(seed), []
    for _ in range(steps):
        row = np.empty((len(episodes.observed), 7), np.float32)
        episodes.step(draw.uniform(-1, 1, (len(row), 1)).astype(np.float32), row)
        made.append(row)
    return np.stack(made, 1)


def test_an_environment_is_the_same_whoever_runs_it():
    (third,) = rows(opened([3]), 1)
    both = rows(opened([0, 3]), 1)
    assert np.array_equal(third[0, :2], both[1, 0, :2]) and not np.array_equal(both[0, 0, :2], both[1, 0, :2])
    made = rows(opened([0, 3]), 40)
    firsts = made[:, 1:][made[:, 1:, 1] == 0, 0]
    assert len(np.unique(firsts)) == len(firsts) > 9  # no two episodes begin alike


@pytest.mark.parametrize("where", ["rank", "process"])
def test_episodes_go_on_where_they_stood(where):
    episodes, again = opened([1, 4], where=where), opened([4, 1], where=where)
    rows(episodes, 17)
    again.load_state_dict(episodes.state_dict())
    assert np.array_equal(episodes.observed, again.observed[::-1])
    assert again._totals == episodes._totals[::-1]
    for one in (episodes, again):
        one.close()


def test_names_wrappers_and_bounds():
    config = EnvironmentConfig(
        environment="Pendulum-v1",
        arguments={"g": 5.0},
        wrappers=({"type": "gymnasium.wrappers:TimeLimit", "arguments": {"max_episode_steps": 3}},),
    )
    maker = Maker(config)
    assert (maker.layout.observations, maker.layout.actions) == (3, 1)
    one = maker.here(1)
    one.reset(0, 7)
    ends = [one.step(np.array([[2.5]], np.float32), [0])[2][0].tolist() for _ in range(3)]
    assert ends == [[False, False], [False, False], [False, True]]
    assert one._all[0].unwrapped.g == 5 and one._all[0].unwrapped.last_u == 2  # clipped to the bound


@pytest.mark.parametrize(
    ("settings", "error", "complaint"),
    [
        ({"environment": "Pendulums-v1"}, JobError, "Pendulum"),
        ({"environment": "nowhere:Track"}, JobError, "no module nowhere"),
        ({"arguments": {"wings": 2}}, JobError, "wings"),
        ({"environment": ODD, "arguments": {"kind": "words"}}, JobError, "FlattenObservation"),
        ({"environment": ODD, "arguments": {"kind": "buttons"}}, JobError, "bounds, .* do not choose among discrete"),
        ({"environment": ODD, "arguments": {"kind": "whole numbers"}}, JobError, "do not choose among discrete"),
        ({"environment": ODD, "arguments": {"kind": "boundless"}}, JobError, "between bounds.* wrapper of your own"),
        ({"environment": ODD, "arguments": {"kind": "several"}}, JobError, "a vector of 4 environments: name"),
        ({"environment": ODD, "arguments": {"kind": "spaceless"}}, JobError, "takes None: actions must be numbers"),
        ({"environment": ODD, "arguments": {"kind": "idle"}}, JobError, "0 as an action"),
        ({"environment": ODD, "arguments": {"kind": "blind"}}, DataError, "not finite"),
        (
            {"environment": ODD, "arguments": {"kind": "dies"}, "where": "process"},
            JobError,
            r"first step \(exit code 7\)",
        ),
        ({"environment": ODD, "arguments": {"kind": "short"}}, DataError, "gave 1 numbers as an observation"),
        ({"environment": ODD, "arguments": {"kind": "nan"}}, DataError, "not finite"),
        ({"environment": ODD, "arguments": {"kind": "old"}}, DataError, "gave 4 values, where gymnasium has 5, obs"),
        ({"environment": ODD, "arguments": {"kind": "older"}}, DataError, "gave one ndarray, where gymnasium has 2"),
        ({"environment": ODD, "arguments": {"kind": "raises"}}, DataError, "out of fuel"),
    ],
)
def test_what_is_no_environment_is_said(settings, error, complaint):
    with pytest.raises(error, match=complaint):
        trained(1, 2, track(**settings), solver())


def test_settings_that_do_not_go_together():
    with pytest.raises(ValueError, match="batch = 5 is no multiple of environments = 2"):
        track(environments=2, batch=5)
    with pytest.raises(ValueError, match="there is no module"):
        track(wrappers=({"type": "no.where:Wrapper"},))
    with pytest.raises(JobError, match=r'\[solver\] name = "actor_critic" does that'):
        next(track().build(Context()).train_batches(0, 1, 0))


def test_evaluation_is_the_policy_in_episodes_with_fixed_seeds():
    config = track(test=5)
    check_same_start(config)
    check_scores(config, (1, 2, 3, 7))
    workload = built(config)
    score = evaluate(alone(), workload, workload.model)["evaluation_return"]
    assert score == evaluate(alone(), workload, workload.model)["evaluation_return"]
    returns = []
    for seed in map(workload.evaluation_seed, range(5)):
        one, total, over = Track(), 0.0, False
        seen = one.reset(seed=seed)[0]
        while not over:
            with torch.no_grad():
                action = workload.model(torch.from_numpy(seen.astype(np.float32))[None])[0].numpy()
            seen, reward, *ends, _ = one.step(-2 + (action + 1) * 2)
            total, over = total + reward, any(ends)
        returns.append(total)
    assert workload.returns == pytest.approx(returns, rel=1e-5)
    assert score == pytest.approx(np.mean(returns), rel=1e-5) and len(set(returns)) == 5


@pytest.mark.parametrize("where", ["rank", "process"])
def test_an_episode_that_would_never_end_is_truncated(where):
    """Evaluated or trained in, and gone on with in its middle; critics see that it was not over."""
    config = track(
        environment=ODD, arguments={"kind": "endless"}, where=where, max_episode_steps=5, environments=2, batch=2
    )
    workload = built(config)
    score = evaluate(alone(), workload, workload.model)["evaluation_return"]
    five = built(track(arguments={"limit": 5, "end": 100.0}))
    assert score == evaluate(alone(), five, five.model)["evaluation_return"]
    simulation = workload.simulation()
    episodes, again = simulation.make([0, 1]), simulation.make([0, 1])
    draw, made, ended = np.random.default_rng(0), np.empty((13, 2, 7), np.float32), []
    for step in range(13):
        ended += [one.steps for one in episodes.step(draw.uniform(-1, 1, (2, 1)).astype(np.float32), made[step])]
    assert ended == [5] * 4 and not made[..., 4].any()
    again.load_state_dict(episodes.state_dict())
    more = [episodes.step(np.ones((2, 1), np.float32), made[0]) for _ in range(2)]
    assert more == [again.step(np.ones((2, 1), np.float32), made[0]) for _ in range(2)] and len(more[1]) == 2
    for one in (episodes, again, workload._evaluation):
        one.close()


@pytest.mark.parametrize("size", [1, 3])
def test_a_lost_process_ends_the_job_or_begins_anew(size):
    def program(transport, lost):
        context = Context(world=World(transport), steps=50, run_seed=1)
        workload = track(environments=2, batch=2, where="process", lost=lost).build(context)
        made = solver(lag=0).build(task_of(workload), context)
        try:
            for step in range(12):
                if step == 4 and context.world.rank == size - 1:  # four steps into an episode
                    os.kill(made._collector._environments._simulators.now.process.pid, signal.SIGKILL)
                stats = made.step(None)
            made.gather()
            return made, stats
        finally:
            if made._collector is not None:
                made._collector.close()

    with pytest.raises(DataError, match=r"is gone \(ended by SIGKILL\)"):
        run_ranks(size, lambda transport: program(transport, "end"))
    ends = run_ranks(size, lambda transport: program(transport, "restart"))
    learner, stats = ends[0]
    rows = learner._learner.replay.state_dict()["rows"]
    assert len(rows) == 24 == len(rows.unique(dim=0)) and stats.scalars["restarts"].value == 1
    places = rows[:, 1].reshape(12, 2)[:, 1] * 7  # steps of the episode, in the environment that was lost
    assert places[:5].round().tolist() == [0, 1, 2, 3, 0]  # the episode is broken off, and another begins


def test_a_process_that_is_lost_again_and_again_ends_the_job():
    episodes = opened([0], where="process", lost="restart")
    rows(episodes, 1)
    simulators = episodes._simulators
    make = simulators._make

    def stillborn():
        one = make()
        one.process.kill()
        return one

    simulators._make = stillborn
    simulators.now.process.kill()
    with pytest.raises(DataError, match="lost 3 times in a row"):
        rows(episodes, 1)
    assert simulators._now is None


@pytest.mark.parametrize("lost", ["end", "restart"])
def test_environments_that_never_begin_are_one_error_on_every_rank(lost):
    odd = {"environment": ODD, "arguments": {"kind": "dies"}, "where": "process", "lost": lost}
    seen = []

    def program(transport):
        context = Context(world=World(transport), steps=5)
        workload = track(environments=1, batch=1, **odd).build(context)
        with pytest.raises(HpcoptError, match=r"lost before its first step \(exit code 7\)") as caught:
            solver().build(task_of(workload), context)
        seen.append(caught.value)

    run_ranks(2, program)
    assert len(seen) == 2 and all(error.on_every_rank and error.exit_code == EXIT_BAD_INPUT for error in seen)


def test_a_process_that_cannot_make_its_environments_says_so():
    workload = track(where="process").build(Context())
    workload.maker.arguments = {"wings": 2}
    with pytest.raises(JobError, match=r"before its first step \(.*wings"):
        workload.simulation().make([0])


def test_evaluation_goes_through_the_loss_of_its_process():
    workload = built(track(where="process", lost="restart"))
    score = evaluate(alone(), workload, workload.model)
    process = workload._evaluation._simulators.now.process
    process.kill()
    assert evaluate(alone(), workload, workload.model) == score == evaluate(alone(), built(track()), workload.model)
    workload._evaluation._simulators._restart = False
    workload._evaluation._simulators.now.process.kill()
    with pytest.raises(DataError, match=r'lost = "restart" would go on'):
        evaluate(alone(), workload, workload.model)


def test_a_process_that_is_lost_while_a_run_goes_on_begins_anew():
    episodes = opened([0, 1], where="process", lost="restart")
    rows(episodes, 10)
    state = episodes.state_dict()
    episodes._simulators.now.process.kill()
    episodes.load_state_dict(state)
    again = episodes.state_dict()
    assert episodes.restarts == 1 and [len(again[number]["actions"]) for number in "01"] == [0, 0]
    assert all(again[number]["episode"] == state[number]["episode"] + 1 for number in "01")
    episodes.close()


def test_what_an_environment_raises_in_its_process_is_told():
    episodes = opened(environment=ODD, arguments={"kind": "raises"}, where="process")
    with pytest.raises(JobError, match=r"step\(\) raised RuntimeError: out of fuel"):
        rows(episodes, 1)


def test_the_network_of_the_job():
    config = ControlConfig(environment=TRACK, actor=MlpBodyConfig(width=8), critic=MlpBodyConfig(width=9, depth=1))
    agent = config.build(Context()).model
    assert (agent.policy.body.width, agent.critics.body.width) == (8, 9)
    assert agent(torch.zeros(4, 2)).shape == (4, 1)
