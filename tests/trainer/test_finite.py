"""Every kind of tensor is looked at, and only what is not finite is named."""

import math

import pytest
import torch
from torch import nn

from hpcopt.comm.world import alone
from hpcopt.shapes.solver import Solver
from hpcopt.trainer.finite import not_finite

LARGEST = torch.finfo(torch.float32).max


class Holder:
    def __init__(self, *tensors):
        self.model = nn.ParameterList([nn.Parameter(t, requires_grad=t.is_floating_point()) for t in tensors])

    must_be_finite = Solver.must_be_finite
    optimizers = ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_is_found_anywhere(dtype, value):
    for place in (0, 500, 1000):
        x = torch.zeros(1001, dtype=dtype)
        assert not_finite(alone(), Holder(torch.ones(2), x).must_be_finite()) is None
        x[place] = value
        assert not_finite(alone(), Holder(torch.ones(2), x).must_be_finite()) == "1 on rank 0"


def test_large_values_empty_tensors_and_whole_numbers_are_finite():
    """A sum of them would overflow."""
    tensors = (torch.full((100,), LARGEST), torch.full((100,), -LARGEST), torch.zeros(0, 3), torch.ones(3).long())
    assert not_finite(alone(), Holder(*tensors).must_be_finite()) is None


def test_buffers_may_hold_minus_infinity():
    """As masks of attention do."""
    holder = Holder(torch.ones(2))
    holder.model.register_buffer("mask", torch.full((3,), -math.inf))
    assert not_finite(alone(), holder.must_be_finite()) is None
