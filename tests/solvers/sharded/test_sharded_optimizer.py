"""Sharded optimizers against the same ones unsharded: every bit, on any number of ranks, through checkpoints."""

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError
from hpcopt.exchange import TwoPhaseConfig
from hpcopt.optim import AdaHessianConfig, AdamWConfig, AnyTorchConfig, ArsgConfig, LambConfig, SgdConfig, SignumConfig
from hpcopt.optim.by_pattern import GroupConfig
from hpcopt.shapes import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig
from hpcopt.solvers.sharded.optimizer import state_bytes
from hpcopt.testing.problem import Problem
from hpcopt.testing.solver import RING, Trial, check_bytes, check_damage


class Warming(torch.optim.SGD):
    """Its steps grow by a count of them that is of no parameter, and there from the start."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, momentum=0.5)
        self.state["all"]["steps"] = 0

    def step(self, closure=None):
        self.state["all"]["steps"] += 1
        for group in self.param_groups:
            group["lr"] *= self.state["all"]["steps"]
        return super().step(closure)


MUON = AnyTorchConfig(type="torch.optim:Muon", lr=0.05, others=AdamWConfig(lr=0.01))
GROUPS = (GroupConfig(pattern="*.bias", lr_factor=2.0), GroupConfig(pattern="4.weight", optimizer=LambConfig(lr=0.02)))
CONFIGS = {
    "sgd": DataParallelConfig(optimizer=SgdConfig(lr=0.1, weight_decay=0.01), clip_norm=0.5, accumulate=2),
    "adamw": DataParallelConfig(optimizer=AdamWConfig(lr=0.01)),
    "lamb": DataParallelConfig(optimizer=LambConfig(lr=0.01)),
    "signum": DataParallelConfig(optimizer=SignumConfig(lr=0.01)),
    "arsg": DataParallelConfig(optimizer=ArsgConfig(lr=0.01)),
    "adagrad": DataParallelConfig(optimizer=AnyTorchConfig(type="torch.optim:Adagrad", lr=0.01)),  # a state at once
    "muon": DataParallelConfig(optimizer=MUON),
    "adahessian": DataParallelConfig(optimizer=AdaHessianConfig(lr=0.05, every=2, eps=1e-2, average="row")),
    "groups": DataParallelConfig(optimizer=AdamWConfig(lr=0.01), groups=GROUPS),
    "warming": DataParallelConfig(optimizer=AnyTorchConfig(type=f"{__name__}:Warming", lr=0.05)),
    "kaisa": KaisaConfig(optimizer=AdamWConfig(lr=0.01), damping=0.1),
}


def sharded(config):
    return type(config).model_validate({**dict(config), "shard_optimizer": True})


def trials(name, **settings):
    config = CONFIGS[name]
    return Trial(config, **settings), Trial(sharded(config), **settings)


def require_same(plain, shards):
    for run, expected in zip(shards, plain, strict=True):
        assert torch.equal(run.parameters, expected.parameters)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_bit_is_that_of_the_optimizer_unsharded(name, size):
    plain, shards = trials(name)
    require_same(plain.run(size, 4), shards.run(size, 4))


def test_there_may_be_fewer_tensors_than_ranks_and_any_exchange():
    half = TwoPhaseConfig.model_validate({"codec": {"name": "half"}})
    plain, shards = trials("muon", exchange=half)
    require_same(plain.run(7, 3), shards.run(7, 3))


@pytest.mark.parametrize("name", ["adamw", "muon", "adahessian", "groups", "warming"])
def test_other_ranks_go_on_bit_for_bit(name):
    """4, 3, then 5 ranks, beside an unsharded run that changes its ranks likewise."""
    ends = []
    for trial in trials(name):
        first = trial.run(4, 2)
        second = trial.run(3, 2, first=2, saved=first)
        ends.append(trial.run(5, 2, first=4, saved=second))
    require_same(*ends)


@pytest.mark.parametrize("name", ["adamw", "muon", "adagrad", "warming"])
def test_a_run_may_be_sharded_later_and_unsharded_again(name):
    plain, shards = trials(name)
    expected = plain.run(2, 6)
    whole = plain.run(2, 2)
    cut = shards.run(2, 2, first=2, saved=whole)
    require_same(expected, plain.run(2, 2, first=4, saved=cut))
    require_same(expected, shards.run(2, 2, first=4, saved=cut))


def test_bytes_are_counted_and_damage_is_told():
    check_bytes(trials("muon")[1], 3)
    check_damage(trials("adamw")[1], 2)
    saved = trials("sgd")[1].run(2, 1)
    with pytest.raises(CheckpointError, match="optimizer SGD, and the job's is AdamW"):
        trials("adamw")[1].run(2, 0, saved=saved)
    lacking = trials("adamw")[1].run(2, 1)[:1]
    with pytest.raises(CheckpointError, match="does not have the optimizer's state of all of"):
        trials("adamw")[1].run(2, 0, saved=lacking)


def test_schedule_free_is_gathered_where_it_is_evaluated():
    pytest.importorskip("schedulefree")
    config = DataParallelConfig(optimizer=AnyTorchConfig(type="schedulefree:AdamWScheduleFree", lr=0.05))
    plain, shards = Trial(config), Trial(sharded(config))
    require_same(plain.run(3, 5), shards.run(3, 5))
    require_same(plain.run(3, 5), shards.run(3, 2, first=3, saved=shards.run(3, 3)))


def wide() -> torch.nn.Module:
    """Five layers, some of them small, the same parameters at every call."""
    widths = (6, 50, 40, 7, 9, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(*(torch.nn.Linear(*pair) for pair in pairwise(widths)))


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "adahessian", "groups"])
def test_memory_is_as_planned(name, size):
    config = sharded(CONFIGS[name])

    def program(transport):
        world = World(transport)
        problem = Problem(model=wide)
        solver = config.build(problem.task(), Context(world=world, exchange=RING, steps=2))
        predicted = solver._shards.predicted_bytes()
        solver.step(problem.batches(world.rank, size, 1)[0])
        return predicted, state_bytes(solver._optimizer)

    results = run_ranks(size, program)
    planned = results[0][0]
    assert all(predicted == planned for predicted, _ in results)
    for expected, (_, measured) in zip(planned, results, strict=True):
        assert measured == pytest.approx(expected, rel=0.05)
    if name in ("sgd", "adamw"):
        assert max(planned) < 1.1 * sum(planned) / size + 1000


def test_the_plan_tells_of_it():
    world = World(RehearsalTransport(4))
    config = sharded(CONFIGS["adamw"])
    plan = config.build(Problem().task(), Context(world=world, exchange=RING, steps=1)).plan(0.0)
    assert plan["optimizer state"].startswith("388 bytes on the fullest rank")
    assert plan["bytes of shards"] == "576 sent by each rank for the new parameters"


def test_what_cannot_be_sharded_says_so():
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValidationError, match="draws at random"):
        DataParallelConfig(optimizer={"name": "torch", "type": "pytorch_optimizer:Kron"}, shard_optimizer=True)
    assert "signs" not in DataParallelConfig(optimizer=SignumConfig(), shard_optimizer=True).needs
