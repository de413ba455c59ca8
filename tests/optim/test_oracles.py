"""AdaHessian and M-SVAG against somebody else's, pytorch-optimizer, where that follows the papers."""

import pytest
import torch

from hpcopt.optim.adahessian import AdaHessian
from hpcopt.optim.products import products
from hpcopt.optim.signs import dense, rademacher
from hpcopt.optim.svag import Svag
from hpcopt.testing.problem import Problem, flat

others = pytest.importorskip("pytorch_optimizer")
PROBLEM = Problem(dtype=torch.float64)


def path(optimizer_of, steps=12, every=0):
    """Parameters after each step; with ``every``, the Hessian's products of the same signs in these steps."""
    task, found = PROBLEM.task(), []
    parameters = list(task.model.parameters())
    optimizer = optimizer_of(parameters)
    for step, batch in enumerate(PROBLEM.batches(0, 1, steps)):
        gradients = torch.autograd.grad(task.loss(task.model, batch), parameters, create_graph=every > 0)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.detach()
        if every and step % every == 0:
            v = rademacher(parameters, step)
            h = products(gradients, parameters, v)
            if isinstance(optimizer, AdaHessian):
                optimizer.observe(h)
                optimizer.step()
            else:
                optimizer.step(hessian=[dense(z) * hz for z, hz in zip(v, h, strict=True)])
        else:
            optimizer.step()
        found.append(flat(task.model))
    return torch.stack(found)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(("power", "decay"), [(1.0, 0.0), (0.5, 0.1)])
def test_adahessian_is_theirs(power, decay, foreach):
    shared = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-2, "weight_decay": decay}
    ours = path(lambda p: AdaHessian(p, power=power, **shared), every=1)
    theirs = path(lambda p: others.AdaHessian(p, hessian_power=power, foreach=foreach, **shared), every=1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_between_looks_at_the_hessian_theirs_is_not_the_formula():
    """Theirs leaves the mean of squares as it was but corrects its bias by all steps, so the diagonal seems smaller
    from step to step; ours goes on with the last diagonal. After the first look, which both share, they part.
    """
    shared = {"lr": 0.05, "betas": (0.9, 0.9), "eps": 1e-8}
    ours = path(lambda p: AdaHessian(p, every=3, **shared), steps=3, every=3)
    theirs = path(lambda p: others.AdaHessian(p, update_period=3, foreach=False, **shared), steps=3, every=3)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-12)
    (move, long_move) = ((x[1] - x[0]) for x in (ours, theirs))
    too_long = ((1 - 0.9**2) / (1 - 0.9)) ** 0.5
    torch.testing.assert_close(long_move, too_long * move, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_m_svag_is_theirs(beta, foreach):
    ours = path(lambda p: Svag(p, lr=0.1, beta=beta))
    theirs = path(lambda p: others.MSVAG(p, lr=0.1, beta=beta, foreach=foreach))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
