"""Derivatives of the global mean loss against autograd on one process; AdaHessian, which asks for them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import RingConfig, TwoPhaseConfig
from hpcopt.optim import AdaHessianConfig
from hpcopt.optim.adahessian import AdaHessian
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.derivatives import GlobalLoss
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


EXACT = Problem(dtype=torch.float64)


def on_ranks(size, ask):
    """What ``ask`` gives of the loss on each of some ranks, and the gradients that it leaves."""
    tasks = [EXACT.task() for _ in range(size)]

    def program(transport):
        context = Context(world=World(transport), exchange=RingConfig())
        loss = GlobalLoss(tasks[transport.rank], context)
        loss.expect_second(loss.parameters)
        return ask(loss), [p.grad.clone() for p in loss.parameters]

    return run_ranks(size, program)


def serial(numbers):
    """Gradients of single samples at the start, each flat, shape (n, parameters)."""
    task = EXACT.task()
    rows = []
    for i in numbers:
        task.model.zero_grad()
        task.loss(task.model, EXACT.at(np.array([i]), 1)).backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in task.model.parameters()]))
    return torch.stack(rows)


def joined(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


@pytest.mark.parametrize("size", [1, 3])
def test_the_gradient_of_samples_by_number_and_less_that_at_another_point(size):
    numbers = np.array([40, 3, 17, 8])
    whole = serial(numbers).mean(0)
    for _, grads in on_ranks(size, lambda loss: loss.gradient(numbers)):
        torch.testing.assert_close(joined(grads), whole, rtol=0, atol=1e-14)

    def less(loss):
        point = [p.detach() + 0.1 for p in loss.parameters]
        before = joined([p.detach() for p in loss.parameters])
        loss.gradient(numbers, less_at=point)
        assert torch.equal(joined([p.detach() for p in loss.parameters]), before)
        with loss.at(point):
            there = joined([p.detach() for p in loss.parameters])
        difference = [p.grad.clone() for p in loss.parameters]
        with loss.at(point):
            loss.gradient(numbers)
        return there - before, joined(difference)

    for (shift, difference), at_point in on_ranks(size, less):
        torch.testing.assert_close(shift, torch.full_like(shift, 0.1), rtol=0, atol=1e-15)
        torch.testing.assert_close(difference, whole - joined(at_point), rtol=0, atol=1e-14)


def share_of_twelve(loss):
    world = loss._context.world
    return EXACT.at(np.array_split(np.arange(12), world.size)[world.rank], 12)


@pytest.mark.parametrize("count", [2, 4, 6], ids="{} parts of 6 samples".format)
def test_products_of_the_parts_have_that_of_the_whole_for_a_mean(count):
    def ask(loss):
        batch, vectors = share_of_twelve(loss), [torch.ones_like(p) for p in loss.parameters]
        whole = joined(loss.product(batch, vectors)[1])
        gradient = joined([p.grad for p in loss.parameters]).clone()
        parts = [joined(loss.product(batch, vectors, part=k, parts=count)[1]).clone() for k in range(count, 2 * count)]
        return whole.clone(), torch.stack(parts), gradient

    for (whole, parts, gradient), grads in on_ranks(2, ask):
        torch.testing.assert_close(parts.mean(0), whole, rtol=0, atol=1e-13)
        assert (parts[0] - parts[1]).abs().max() > 1e-3
        torch.testing.assert_close(joined(grads), gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1, 3])
def test_the_variance_between_samples_is_that_of_their_gradients(size):
    single = serial(range(11))
    for (_, variance), grads in on_ranks(size, lambda loss: loss.variance(np.arange(11))):
        torch.testing.assert_close(joined(grads), single.mean(0), rtol=0, atol=1e-14)
        torch.testing.assert_close(joined(variance), single.var(0, unbiased=False), rtol=0, atol=1e-14)


def test_the_variance_between_ranks_is_that_of_their_means():
    single = serial(range(12))
    means = torch.stack([part.mean(0) for part in single.split(4)])
    for (_, variance), _ in on_ranks(3, lambda loss: loss.variance(share_of_twelve(loss), 1)):
        torch.testing.assert_close(joined(variance), means.var(0, unbiased=False), rtol=0, atol=1e-14)
