"""Every workload's model in bfloat16, and translated by a compiler: near the losses of float32, or equal to them."""

import pytest
import torch
from pydantic import ValidationError

from hpcopt.build import build
from hpcopt.comm.world import alone
from hpcopt.errors import JobError
from hpcopt.job import Job
from hpcopt.shapes.loss import OutputLoss
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig
from hpcopt.trainer.loop import evaluate
from hpcopt.trainer.run import RunConfig
from hpcopt.workloads.on_device import Narrow, on_device
from hpcopt.workloads.teacher import TeacherConfig
from tests.simulated_gpu.workloads import WORKLOADS, data

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", sorted(WORKLOADS.keys() - {"teacher"}))  # its numbers are float64
def test_bfloat16_is_near_and_all_that_is_kept_is_float32(name):
    wide, narrow = WORKLOADS[name](), on_device(WORKLOADS[name](), CPU, "bfloat16")
    batch = next(wide.train_batches(0, 1, 0))
    exact, rounded = (w.loss(w.model, batch) for w in (wide, narrow))
    assert rounded.dtype == torch.float32
    assert 0 < abs(float((exact - rounded).detach())) < 0.05 * float(exact.detach())
    rounded.backward()
    kept = [*narrow.model.parameters(), *(p.grad for p in narrow.model.parameters() if p.grad is not None)]
    assert {x.dtype for x in kept} == {torch.float32}
    assert narrow.model.state_dict().keys() == wide.model.state_dict().keys()
    expected, found = (evaluate(alone(), w, w.model) for w in (wide, narrow))
    loss = next(iter(wide.scores))
    assert found[loss] == pytest.approx(expected[loss], rel=0.05)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_compute_in_float32_on_a_cpu(kind):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 4), kind(4, 5)), torch.randn(2, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model[0](x)
    assert torch.equal(Narrow(model)(x)[0], model[1](rounded.float())[0])


def test_what_computes_in_float64_refuses_bfloat16():
    assert TeacherConfig(precision="bfloat16", dtype="float32").precision == "bfloat16"
    with pytest.raises(ValidationError, match='dtype = "float32"'):
        TeacherConfig(precision="bfloat16")


def losses(solver, steps: int = 3, **settings) -> list[float]:
    config = WORKLOADS["image_classification"].config(data()).model_copy(update=settings)
    built = build(Job(run=RunConfig(steps=steps), workload=config, solver=solver), alone())
    batches = built.workload.train_batches(0, 1, 0)
    return [built.solver.step(next(batches)).loss for _ in range(steps)]


@pytest.mark.parametrize(
    "solver", [DataParallelConfig(), KaisaConfig(factor_every=2, inverse_every=2)], ids=["sgd", "kaisa"]
)
def test_a_compiled_model_trains_the_same_by_an_exchange_and_by_kfac(solver, monkeypatch):
    compiled = []
    compile_model = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: compiled.append(m) or compile_model(m, backend="eager"))
    found = losses(solver, compile=True)
    assert len(compiled) == 1 and compiled[0]._compiled_call_impl is not None
    assert found == losses(solver)


def test_bfloat16_trains():
    exact, found = losses(DataParallelConfig()), losses(DataParallelConfig(), precision="bfloat16")
    assert found != exact and found == pytest.approx(exact, rel=0.05)


def test_who_takes_a_model_apart_refuses_bfloat16():
    workload = on_device(WORKLOADS["image_classification"](), CPU, "bfloat16")
    assert not isinstance(workload.loss, OutputLoss)
    with pytest.raises(JobError, match="loss is a function of the model's outputs"):
        losses(BlockAdmmConfig(), precision="bfloat16")
