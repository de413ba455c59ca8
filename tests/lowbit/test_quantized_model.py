"""Any network in few bits by one section of a job: over ranks, and resumed bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.checkpoint import main as checkpoint
from hpcopt.errors import JobError
from hpcopt.lowbit import QuantizedConfig
from hpcopt.lowbit.layers import QuantizedLinear
from hpcopt.models.resnet import ResNetConfig
from hpcopt.runs import open_run
from hpcopt.shapes.context import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.testing.problem import Problem, network
from hpcopt.testing.solver import Trial, check_bytes, check_same_curve
from hpcopt.testing.workload import check_workload
from hpcopt.train import main
from hpcopt.workloads.image_classification import ImageClassificationConfig

JOB = """
[run]
name = "bits"
steps = {steps}
[workload]
name = "image_classification"
data = "{data}/digits"
batch = 30
model = {{ name = "mlp", hidden = [16] }}
[[workload.rewrites]]
name = "quantized"
bits = 4
[solver]
name = "data_parallel"
optimizer = {{ name = "sgd", lr = 0.1, momentum = 0.9 }}
"""


def train(folder: Path, data: Path, run: str, *steps: int) -> None:
    for count in steps:
        (folder / f"{run}-{count}.toml").write_text(JOB.format(data=data, steps=count), encoding="utf-8")
        assert main([str(folder / f"{run}-{count}.toml"), "--run-dir", str(folder / run)]) == 0


def trial(**settings) -> Trial:
    return Trial(DataParallelConfig(), Problem(model=lambda: QuantizedConfig(**settings).apply(network())))


def test_without_draws_the_curve_is_that_of_one_rank():
    check_same_curve(trial(gradient="exact"), (1, 2, 3))


def test_with_draws_the_ranks_agree_near_the_curve_of_one():
    """Each rank draws its own; as threads they share a generator, so that no two runs are the same."""
    drawn = trial(bits=6)
    one = drawn.first(1)[0]
    for size in (2, 3):
        runs = drawn.first(size)
        assert all(torch.equal(run.parameters, runs[0].parameters) for run in runs)
        np.testing.assert_allclose(runs[0].losses, one.losses, rtol=0.02)
        check_bytes(drawn, size)


def test_a_stopped_job_goes_on_bit_for_bit(digits, tmp_path):
    train(tmp_path, digits, "straight", 6)
    train(tmp_path, digits, "stopped", 3, 6)
    assert checkpoint(["diff", str(tmp_path / "straight"), str(tmp_path / "stopped")]) == 0
    assert type(open_run(tmp_path / "stopped").model[1]) is QuantizedLinear


def test_a_workload_of_few_bits_keeps_the_promises(digits):
    config = ImageClassificationConfig(
        data=digits / "digits", batch=30, model=ResNetConfig(blocks=1, width=4), rewrites=(QuantizedConfig(),)
    )
    check_workload(config, ranks=(1, 3), steps=2)
    with pytest.raises(JobError, match=r"\[\[workload.rewrites\]\] quantized: the network has no"):
        config.model_copy(update={"rewrites": (QuantizedConfig(skip=("*",)),)}).made(Context())
