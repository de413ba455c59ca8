"""Stochastic gradient push and its kin, against recurrences written down from the paper."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.optim import SgdConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.gossip import GossipConfig
from hpcopt.testing.problem import flat
from tests.over_sockets import groups

STEPS = 9
torch.manual_seed(3)
MODEL = nn.Linear(4, 2)
OPTIMIZER = SgdConfig(lr=0.1, momentum=0.9)
MIXINGS = [
    GossipConfig(optimizer=OPTIMIZER),
    GossipConfig(optimizer=OPTIMIZER, graph="random", tau=2),
    GossipConfig(optimizer=OPTIMIZER, mixing="metropolis", graph="ring"),
    GossipConfig(optimizer=OPTIMIZER, mixing="choco", graph="ring"),
]


def loss(model: nn.Module, batch: TensorBatch) -> torch.Tensor:
    return F.mse_loss(model(batch.tensors["x"]), batch.tensors["y"])


def network() -> nn.Module:
    """A copy, since ranks on threads share torch's generator."""
    return copy.deepcopy(MODEL)


def batch(step: int, rank: int, size: int) -> TensorBatch:
    generator = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(5, 4, generator=generator)
    return TensorBatch({"x": x, "y": x[:, :2] - x[:, 2:]}, torch.arange(5), 5 * size)


def solver(transport, config, model=None, seed=0):
    context = Context(world=World(transport), steps=STEPS, run_seed=seed)
    return config.build(Task(model or network(), loss), context)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_steps_are_those_of_stochastic_gradient_push(size):
    """One process computes alg. 1 for all ranks: gradient at z, step on x, column-stochastic mixing of x and w."""

    def program(t):
        s = solver(t, GossipConfig(optimizer=OPTIMIZER))
        for step in range(STEPS):
            s.step(batch(step, t.rank, size))
        s.gather()
        return flat(s.model)

    start = flat(network())
    x, w, u = start.repeat(size, 1), torch.ones(size), torch.zeros(size, len(start))
    rounds = max(1, (size - 1).bit_length())
    for step in range(STEPS):
        for rank in range(size):
            model = network()
            torch.nn.utils.vector_to_parameters(x[rank] / w[rank], model.parameters())
            loss(model, batch(step, rank, size)).backward()
            u[rank] = 0.9 * u[rank] + torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            x[rank] -= 0.1 * u[rank]
        if size > 1:
            p = torch.zeros(size, size)
            for rank in range(size):
                p[rank, rank] = p[(rank + (1 << step % rounds)) % size, rank] = 0.5
            x, w = p @ x, p @ w
    expected = x.sum(0) / w.sum()
    for result in run_ranks(size, program):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", MIXINGS, ids=lambda c: f"{c.mixing}-{c.graph}-{c.tau}")
def test_all_mixings_learn(config):
    def program(t):
        s = solver(t, config)
        first = s.step(batch(0, t.rank, 4)).loss
        for step in range(1, 60):
            last = s.step(batch(step, t.rank, 4)).loss
        s.gather()
        return first, last, flat(s.model)

    results = run_ranks(4, program)
    assert sum(last for _, last, _ in results) < 0.05 * sum(first for first, _, _ in results)
    assert all(torch.equal(model, results[0][2]) for _, _, model in results)


@pytest.mark.parametrize("config", MIXINGS, ids=lambda c: f"{c.mixing}-{c.graph}-{c.tau}")
def test_a_restart_continues_bit_for_bit(config):
    def save(s):
        s.gather()
        return copy.deepcopy((s.state_dict(), s.rank_state_dict()))

    def straight(t):
        s = solver(t, config)
        for step in range(6):
            if step == 3:
                saved = save(s)
            s.step(batch(step, t.rank, 3))
        s.gather()
        return saved, flat(s.model)

    results = run_ranks(3, straight)
    parts = [saved[1] for saved, _ in results]

    def resumed(t):
        s = solver(t, config)
        s.load_state_dict(results[0][0][0], parts)
        for step in range(3, 6):
            s.step(batch(step, t.rank, 3))
        s.gather()
        return flat(s.model)

    assert all(torch.equal(result, results[0][1]) for result in run_ranks(3, resumed))


def test_fewer_ranks_go_on_from_the_mean():
    def saved(t):
        s = solver(t, GossipConfig(optimizer=OPTIMIZER))
        s.step(batch(0, t.rank, 3))
        s.gather()
        return copy.deepcopy((s.state_dict(), s.rank_state_dict())), flat(s.model)

    states = run_ranks(3, saved)

    def program(t):
        s = solver(t, GossipConfig(optimizer=OPTIMIZER))
        s.load_state_dict(states[0][0][0], [part for (_, part), _ in states])
        s.gather()
        return flat(s.model)

    for result in run_ranks(2, program):
        torch.testing.assert_close(result, states[0][1])


@pytest.mark.parametrize("config", [MIXINGS[0], MIXINGS[3]], ids=lambda c: c.mixing)
def test_those_who_are_left_go_on_where_they_were_and_with_a_new_one_from_their_mean(config):
    """Rank 1 of three is lost: the state of the others is all there is."""

    def saved(t):
        s = solver(t, config)
        for step in range(3):
            s.step(batch(step, t.rank, 3))
        s.stand()
        return copy.deepcopy((s.state_dict(), s.rank_state_dict()))

    def resumed(t):
        s = solver(t, config)
        s.load_state_dict(left[0][0], [part for _, part in left])
        return copy.deepcopy(s.rank_state_dict()["mixing"]), getattr(s._mixture._mixer, "copies", {})

    with groups() as make:
        states = make(3).run(saved)
        left = [states[0], states[2]]
        two, three = make(2).run(resumed), make(3).run(resumed)
    parts = [part["mixing"] for _, part in left]
    for (now, copies), then in zip(two, parts, strict=True):
        assert now["weight"] == then["weight"] and torch.equal(now["x"], then["x"])
        for rank, public in copies.items():
            assert torch.equal(public, parts[rank]["copy"])
    mean = sum(part["x"].double() for part in parts) / sum(part["weight"] for part in parts)
    for now, _ in three:
        assert now["weight"] == 1 and torch.equal(now["x"], mean.float())


def test_double_precision_is_refused():
    with pytest.raises(JobError, match="float32"):
        run_ranks(1, lambda t: solver(t, GossipConfig(), network().double()))


@pytest.mark.parametrize("config", [MIXINGS[1], MIXINGS[3]], ids=["random graph", "choco"])
def test_the_seed_of_the_run_decides_what_is_drawn(config):
    def program(t, seed):
        s = solver(t, config, seed=seed)
        for step in range(STEPS):
            s.step(batch(step, t.rank, 3))
        return flat(s.model)

    once, again, other = (run_ranks(3, lambda t, k=seed: program(t, k)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(once, other, strict=True))
