"""What no rule of ours moves by, and what each does with nothing to do."""

import pytest
import torch
from torch import nn

from hpcopt.errors import UnsupportedError
from hpcopt.optim import AdaHessian, Arsg, Lamb, Rsg, Signum, Svag

RULES = [Arsg, Lamb, Rsg, Signum, Svag]


@pytest.mark.parametrize("rule", RULES)
def test_sparse_gradients_are_refused(rule):
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(UnsupportedError, match=f"{rule.__name__} does not move by sparse gradients"):
        rule(table.parameters(), lr=0.1).step()


@pytest.mark.parametrize("rule", [*RULES, AdaHessian])
def test_complex_parameters_are_refused_before_the_first_step(rule):
    with pytest.raises(UnsupportedError, match=f"{rule.__name__} does not move complex parameters"):
        rule([nn.Parameter(torch.ones(3, dtype=torch.complex64))], lr=0.1)


@pytest.mark.parametrize("rule", RULES)
def test_empty_and_unused_parameters_stay(rule):
    unused, empty, used = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.ones(2, 2))
    empty.grad, used.grad = torch.ones(0, 3), torch.ones(2, 2)
    optimizer = rule([unused, empty, used], lr=0.1)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(unused, torch.ones(2))
    assert not torch.equal(used, torch.ones(2, 2))
