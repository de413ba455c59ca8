"""AdaHessian behind data parallelism: the serial path at any number of ranks, and what solvers refuse."""

import pytest
import torch
from pydantic import ValidationError

from hpcopt.exchange import TwoPhaseConfig
from hpcopt.optim import AdaHessianConfig
from hpcopt.optim.adahessian import AdaHessian
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.gossip import GossipConfig
from hpcopt.testing.problem import Problem, flat
from hpcopt.testing.solver import Trial, check_solver

pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
CONFIG = DataParallelConfig(optimizer=AdaHessianConfig(lr=0.05, every=2, eps=1e-2))


def test_keeps_what_every_solver_promises():
    check_solver(CONFIG)


@pytest.mark.parametrize("size", [1, 3])
def test_any_number_of_ranks_takes_the_serial_path(size):
    problem = Problem()
    task = problem.task()
    serial = CONFIG.optimizer.build(task.model.parameters())
    assert isinstance(serial, AdaHessian)
    seed = Context().seed("signs")
    for step, batch in enumerate(problem.batches(0, 1, 6)):
        serial.zero_grad()
        serial._seed = derive(seed, step, EVERY_RANK, "signs") - serial._steps
        task.loss(task.model, batch).backward(create_graph=True)
        serial.step()
    expected = flat(task.model)
    runs = Trial(CONFIG, problem).run(size, 6)
    torch.testing.assert_close(runs[0].parameters, expected, rtol=2e-5, atol=2e-6)
    assert all(torch.equal(run.parameters, runs[0].parameters) for run in runs)


def test_micro_batches_change_nothing():
    whole = Trial(CONFIG).run(2)[0].parameters
    cut = Trial(CONFIG.model_copy(update={"accumulate": 3})).run(2)[0].parameters
    torch.testing.assert_close(cut, whole, rtol=2e-5, atol=2e-6)


def test_products_are_compressed_and_owed_as_gradients_are():
    trial = Trial(CONFIG, exchange=TwoPhaseConfig.model_validate({"codec": {"name": "qsgd", "bits": 8}}))
    dense, lossy = Trial(CONFIG).run(3), trial.run(3)
    assert sum(lossy[0].sent_bytes) < 0.7 * sum(dense[0].sent_bytes)
    assert all(torch.equal(run.parameters, lossy[0].parameters) for run in lossy)
    torch.testing.assert_close(lossy[0].parameters, dense[0].parameters, rtol=0, atol=0.2)


def test_a_solver_that_has_no_second_derivative_says_so():
    with pytest.raises(ValidationError, match="asks for the loss's second derivative"):
        GossipConfig(optimizer=AdaHessianConfig())
