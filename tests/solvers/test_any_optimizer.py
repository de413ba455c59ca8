"""Anybody's optimizers and groups behind data parallelism and K-FAC: equal on all ranks, resumed bit for bit."""

import pytest
import torch
from pydantic import ValidationError

from hpcopt.comm.world import alone
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.optim import AdamWConfig, AnyTorchConfig, SgdConfig, SignumConfig
from hpcopt.optim.by_pattern import GroupConfig
from hpcopt.optim.modes import to_evaluation, to_training
from hpcopt.shapes import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.gossip import GossipConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.solver import (
    Trial,
    check_bytes,
    check_equal_on_all_ranks,
    check_plan,
    check_resume,
    check_same_curve,
)

MUON = AnyTorchConfig(type="torch.optim:Muon", lr=0.05, others=AdamWConfig(lr=0.01))
BIASES = GroupConfig(pattern="*.bias", lr_factor=2.0, weight_decay=0.1)
HEAD = GroupConfig(pattern="4.weight", optimizer=SgdConfig(lr=0.1))


def any_torch(name: str, **settings) -> AnyTorchConfig:
    pytest.importorskip(name.partition(":")[0])
    return AnyTorchConfig(type=name, **settings)


@pytest.mark.parametrize(
    ("config", "exchange"),
    [
        (DataParallelConfig(optimizer=MUON), RingConfig()),
        (DataParallelConfig(optimizer=MUON, groups=(BIASES, HEAD), clip_norm=0.1), RingConfig()),
        (DataParallelConfig(groups=(HEAD, BIASES)), TwoPhaseConfig.model_validate({"codec": {"name": "half"}})),
        (KaisaConfig(optimizer=MUON, groups=(BIASES,), damping=0.1), RingConfig()),
        (GossipConfig(groups=(BIASES, HEAD)), RingConfig()),
    ],
    ids=["muon", "groups", "half", "kaisa", "gossip"],
)
def test_ranks_stay_equal_and_resume(config, exchange):
    trial = Trial(config, exchange=exchange)
    check_equal_on_all_ranks(trial, 3)
    check_resume(trial, 3)
    check_plan(trial, 3)


def test_the_curve_is_that_of_one_rank():
    check_same_curve(Trial(DataParallelConfig(optimizer=MUON, groups=(BIASES, HEAD))), (1, 3))


@pytest.mark.parametrize("type_", ["SOAP", "Shampoo", "Kron"])  # Kron, which is PSGD, draws at random
def test_preconditioners_by_name(type_):
    config = any_torch(f"pytorch_optimizer:{type_}", lr=0.01)
    assert config.draws == (type_ == "Kron")
    trial = Trial(DataParallelConfig(optimizer=config))
    check_equal_on_all_ranks(trial, 2)
    check_resume(trial, 2)


def test_a_vote_has_groups_but_one_optimizer():
    config = DataParallelConfig(optimizer=SignumConfig(lr=0.01), groups=(BIASES,))
    assert "signs" in config.needs
    runs = Trial(config, exchange=VoteConfig()).run(2, 2)
    assert torch.equal(runs[0].parameters, runs[1].parameters)
    assert "signs" not in DataParallelConfig(optimizer=SignumConfig(), groups=(HEAD,)).needs


def test_groups_are_in_the_plan_and_wrong_ones_are_told():
    task, context = Problem().task(), Context(world=alone(), exchange=RingConfig(), steps=1)
    plan = DataParallelConfig(optimizer=MUON, groups=(BIASES,)).build(task, context).plan(0.0)
    assert plan["groups"].splitlines() == [
        "Muon, rate x 1, decay 0.1: 3 tensors, 125 values, 0.weight to 4.weight",
        "AdamW, rate x 0.4, decay 0.1: 3 tensors, 18 values, 0.bias to 4.bias",
    ]
    with pytest.raises(JobError, match="matches no parameter"):
        DataParallelConfig(groups=(GroupConfig(pattern="bias", lr=1),)).build(task, context)


SCHEDULE_FREE = [
    "schedulefree:AdamWScheduleFree",
    "schedulefree:SGDScheduleFree",
    "pytorch_optimizer:ScheduleFreeAdamW",
]


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_is_saved_and_evaluated_at_its_mean(name):
    """Against the optimizer in a plain loop, looked at by its own eval() at the end."""
    config = any_torch(name, lr=0.05)
    problem = Problem()
    task = problem.task()
    optimizer = config.build(list(task.model.parameters()))
    optimizer.train()
    for batch in problem.batches(0, 1, 5):
        optimizer.zero_grad()
        task.loss(task.model, batch).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.05
        optimizer.step()
    trained = flat(task.model)
    optimizer.eval()
    trial = Trial(DataParallelConfig(optimizer=config), problem)
    run = trial.run(1)[0]
    assert torch.equal(run.parameters, flat(task.model))
    assert torch.equal(run.shared["model"]["0.bias"], task.model[0].bias)
    assert not torch.equal(run.parameters, trained)
    check_equal_on_all_ranks(trial, 2)
    check_resume(trial, 2)  # its straight run has no evaluation in its middle, the other one has
    check_bytes(trial, 2)


def test_there_and_back_is_bit_for_bit():
    config = any_torch(SCHEDULE_FREE[0], lr=0.1)
    p = torch.nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    optimizer = config.build([p])
    for step in range(5):
        to_training(optimizer)
        p.grad = torch.sin(p.detach() * step)
        optimizer.step()
        before = p.detach().clone()
        to_evaluation(optimizer)
        to_evaluation(optimizer)
        assert step == 0 or not torch.equal(p, before)
        to_training(optimizer)
        assert torch.equal(p, before)


def test_solvers_that_do_not_follow_modes_say_so():
    config = any_torch(SCHEDULE_FREE[0])
    with pytest.raises(ValidationError, match="evaluated at other parameters than those that it trains"):
        GossipConfig(optimizer=config)
