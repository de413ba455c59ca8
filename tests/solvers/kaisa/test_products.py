"""What products on a GPU would round to, and how many samples would be taken at once, told without one."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from hpcopt.comm.world import alone
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.products import ON_DEVICE, at_once, rounding

PLACES = [torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)]


def roundings() -> list[object]:
    return [getattr(place, "fp32_precision", None) or place.allow_tf32 for place in PLACES]


@pytest.mark.parametrize(("tf32", "inside"), [(False, ["ieee", "ieee"]), (True, ["tf32", "tf32"])])
def test_statistics_round_as_is_said_and_training_as_before(tf32, inside):
    before = roundings()
    with pytest.raises(KeyError), rounding(tf32):
        assert roundings() in (inside, [tf32, tf32])
        raise KeyError
    assert roundings() == before


def test_every_use_of_a_layer_is_recorded_within(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    kaisa = Kaisa(model, alone())
    inside, uses = [False], []

    @contextmanager
    def products():
        inside[0] = True
        yield
        inside[0] = False

    for layer in kaisa.layers.found:
        add = layer.record_gradient
        monkeypatch.setattr(layer, "record_gradient", lambda *x, add=add: uses.append(inside[0]) or add(*x))
    kaisa._recorder.products = products
    model(torch.ones(5, 3)).sum().backward()
    assert uses == [True, True]


def test_a_cpu_takes_what_its_cache_holds_and_a_device_what_memory_is_meant_for():
    assert [at_once(torch.empty(9), 100, each) for each in (0, 7, 1000)] == [100, 14, 1]
    assert at_once(torch.empty(9, device="meta"), 100, 7) == ON_DEVICE // 7
