"""The loops for a GPU write the bytes of the CPU's: those in Triton run by its interpreter, those in torch as they are.

The interpreter is slow, so inputs are short. On a machine with a card, test_on_a_gpu.py does all this and more.
"""

import os
import threading

import numpy as np
import pytest
import torch

from hpcopt import kernels
from hpcopt.comm import two_phase
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.staged import StagedTransport
from hpcopt.compress import QSGD, Half, RandomK, Sign, TopK
from hpcopt.compress.finite import MOST
from hpcopt.errors import NonFiniteError, PayloadError
from hpcopt.kernels import cuda
from hpcopt.testing.codec import label
from hpcopt.testing.values import gaussian
from tests.kernels.cuda.cases import ON_DEVICE, check_same_bytes, inputs, loops_for_a_gpu, mixed

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # it is read where a kernel is defined

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_on_a_gpu.py runs these loops compiled")

HERE = torch.device("cpu")
BY_TORCH = [TopK(), TopK(threshold="sampled"), TopK(fraction=0.1), RandomK(), RandomK(fraction=0.4, scaled=False)]
CARRY = ("dense", "half")


@pytest.fixture(autouse=True)
def quiet():
    """The interpreter is numpy, which warns of what a GPU does silently."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("codec", ON_DEVICE, ids=label)
def test_same_bytes(codec):
    for n in (0, 1, 513):
        check_same_bytes(codec, mixed(n), HERE)


@pytest.mark.parametrize("codec", [Sign(), Sign(bucket=1024)], ids=label)
def test_a_sum_that_overflows_is_taken_again_in_float64(codec):
    check_same_bytes(codec, inputs(513)["sums overflow"], HERE)


@pytest.mark.parametrize("codec", [*(QSGD(bits=bits) for bits in range(2, 9)), Half(), Half(format="fp16")], ids=label)
def test_the_largest_values_stay_finite(codec):
    x = torch.tensor([MOST, -MOST, MOST / 3, 1.0] * 40)
    with loops_for_a_gpu():
        decoded = codec.decode(codec.encode(x, seed=7), x.numel())
    assert decoded.isfinite().all()
    assert torch.equal(decoded, codec.decode(codec.encode(x, seed=7), x.numel()))


def test_sums_run_in_the_order_of_the_cpus():
    """In another order about every other sum would differ in its last place."""
    from tests.kernels.cuda.sums_kernel import squares

    for seed in range(6):
        x = gaussian(500, seed)
        check_same_bytes(Sign(), x, HERE)
        out = torch.zeros(1, dtype=torch.float64)
        squares[(1,)](x, out, 500, 512)
        assert out.item() == kernels.levels.sum_of_squares(x.numpy())


@pytest.mark.parametrize("codec", BY_TORCH, ids=label)
@pytest.mark.parametrize("n", [65, 300_000, 1_000_000])
def test_same_places(codec, n):
    check_same_bytes(codec, gaussian(n), HERE)
    check_same_bytes(codec, (4 * gaussian(n)).round(), HERE)  # many of one size


@pytest.fixture
def one_kernel_at_a_time(monkeypatch):
    """The interpreter is not made for several threads, which ranks are here."""
    from triton.runtime.interpreter import GridExecutor

    run, lock = GridExecutor.__call__, threading.Lock()

    def alone(self, *args, **constants):
        with lock:
            run(self, *args, **constants)

    monkeypatch.setattr(GridExecutor, "__call__", alone)


@pytest.mark.parametrize("codec", [QSGD(), Sign(), Half(), *BY_TORCH[1:]], ids=label)
def test_an_exchange_by_way_of_main_memory_has_the_bits_of_one_in_it(codec, one_kernel_at_a_time):
    def summed(transport):
        owed = [gaussian(1300, seed=9), gaussian(1300, seed=10)]
        residuals = dict(zip(("sender_residual", "owner_residual"), owed, strict=True))
        x = gaussian(1300, seed=transport.rank)
        two_phase.all_reduce(transport, x, codec, sender_seed=transport.rank, owner_seed=7, **residuals)
        return torch.stack([x, *owed])

    expected = run_ranks(3, summed)
    with loops_for_a_gpu():
        found = run_ranks(3, lambda t: summed(StagedTransport(t, away=lambda x: True)))
    assert torch.equal(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("codec", [c for c in ON_DEVICE if c.name not in CARRY], ids=label)
def test_inf_and_nan_are_refused(codec):
    for bad in (float("nan"), float("-inf")):
        x = gaussian(65)
        x[64] = bad
        with loops_for_a_gpu(), pytest.raises(NonFiniteError, match=codec.name):
            codec.encode(x, seed=0)


@pytest.mark.parametrize("codec", ON_DEVICE, ids=label)
def test_a_payload_cut_short_is_refused(codec):
    payload = codec.encode(gaussian(70), seed=0)
    with loops_for_a_gpu(), pytest.raises(PayloadError):
        codec.decode(payload[: payload.numel() - 1], 70)


def test_the_constants_are_those_of_the_cpu():
    from hpcopt.kernels import rng
    from hpcopt.kernels.cuda import rng as ours

    for name in ("GOLDEN", "MIX1", "MIX2"):
        assert getattr(ours, name).value == getattr(cuda.sampling, name) == int(getattr(rng, name))
