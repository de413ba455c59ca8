"""Our rules on several ranks: one path at any number of them, through Horovod, through 4 bits, and after a resume."""

import pytest
import torch

from hpcopt.comm.world import World
from hpcopt.exchange import NativeConfig, TwoPhaseConfig
from hpcopt.optim import (
    AdaHessianConfig,
    ArsgConfig,
    MSvagConfig,
    RsgConfig,
    SgdConfig,
    SvagConfig,
)
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.snvrg import SnvrgConfig
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.solver import Trial, check_resume

pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
RULES = {
    "adahessian": DataParallelConfig(optimizer=AdaHessianConfig(lr=0.05, every=2, eps=1e-2)),
    "rsg": DataParallelConfig(optimizer=RsgConfig(lr=0.5, momentum=0.9)),
    "arsg": DataParallelConfig(optimizer=ArsgConfig(lr=0.02, betas=(0.9, 0.9), restart_every=3)),
    "svag": DataParallelConfig(optimizer=SvagConfig(lr=0.5)),
    "m_svag": DataParallelConfig(optimizer=MSvagConfig(lr=0.5)),
    "snvrg": SnvrgConfig(lengths=(2, 2), restart_every=1, optimizer=SgdConfig(lr=0.5, momentum=0.0)),
}
PRECISE = Problem(dtype=torch.float64)
STEPS = 6


@pytest.mark.parametrize("rule", RULES)
def test_one_path_at_any_number_of_ranks(rule):
    trial = Trial(RULES[rule], PRECISE)
    alone = trial.run(1, STEPS)[0]
    assert alone.losses[-1] < alone.losses[0]
    for size in (2, 3, 4):
        for run in trial.run(size, STEPS):
            torch.testing.assert_close(run.parameters, alone.parameters, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_four_bits_stay_close(rule):
    """The distance from the dense path is well below the way that was gone. Small values of AdaHessian's diagonal are
    lost in 4 bits, and nothing is divided by them with a larger eps.
    """
    config = RULES[rule]
    if rule == "adahessian":
        config = DataParallelConfig(optimizer=AdaHessianConfig(lr=0.05, every=2, eps=0.1))
    start = flat(Problem().task().model)
    dense = Trial(config).run(3, STEPS)
    lossy = Trial(config, exchange=TwoPhaseConfig.model_validate({"codec": {"name": "qsgd", "bits": 4}})).run(3, STEPS)
    assert sum(lossy[0].sent_bytes) < 0.5 * sum(dense[0].sent_bytes)
    assert all(torch.equal(run.parameters, lossy[0].parameters) for run in lossy)
    gone, off = dense[0].parameters - start, lossy[0].parameters - dense[0].parameters
    assert off.norm() < 0.5 * gone.norm()


@pytest.mark.parametrize("rule", RULES)
def test_a_resume_goes_on_with_the_same_bits(rule):
    check_resume(Trial(RULES[rule]), 2)


@pytest.mark.parallel(2)
def test_through_horovod_too(horovod):
    from hpcopt.comm.horovod import HorovodTransport

    world = World(HorovodTransport())
    for rule, config in RULES.items():
        trial = Trial(config, PRECISE, NativeConfig())
        solver = config.build(PRECISE.task(), trial.context(world, 9))
        for batch in PRECISE.batches(solver.data_rank, solver.data_size, STEPS):
            solver.step(batch)
        alone = Trial(config, PRECISE).run(1, STEPS)[0].parameters
        torch.testing.assert_close(flat(solver.model), alone, rtol=0, atol=1e-9, msg=rule)
