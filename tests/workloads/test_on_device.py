"""Model, loss and batches go to the device together. torch's "meta" device, where tensors have no values, stands for
one that is not the CPU."""

import pytest
import torch

from hpcopt.shapes.context import Context
from hpcopt.workloads.image_classification import ImageClassificationConfig
from hpcopt.workloads.on_device import on_device

META = torch.device("meta")


@pytest.fixture
def config(digits) -> ImageClassificationConfig:
    return ImageClassificationConfig(data=digits / "digits", batch=12)


def test_on_the_cpu_it_is_the_workload_itself(config):
    workload = config.build(Context())
    assert on_device(workload, torch.device("cpu")) is workload


def test_everything_that_meets_in_a_step_is_there(config):
    inner = config.build(Context())
    workload = on_device(inner, META)
    assert workload.steps_per_epoch == inner.steps_per_epoch
    assert workload.loss.example.device == META
    batch = next(workload.train_batches(1, 3, start=2))
    assert {t.device for t in batch.tensors.values()} == {META}
    assert torch.equal(batch.indices, next(inner.train_batches(1, 3, start=2)).indices)
    loss = workload.loss(workload.model, batch)
    loss.backward()
    assert {p.grad.device for p in workload.model.parameters()} == {loss.device} == {META}
    test = next(workload.test_batches(0, 1))
    assert {score.device for score in workload.score(workload.model, test).values()} == {META}
