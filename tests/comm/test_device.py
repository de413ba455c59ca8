"""Which device a rank takes, and that one that stays on the CPU leaves CUDA alone."""

import pytest
import torch

from hpcopt.comm.device import device_name, device_of, planned_device, use_device
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import JobError, LaunchError


def visible(monkeypatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def test_the_one_gpu_or_the_local_ranks_or_the_cpu(monkeypatch):
    visible(monkeypatch, 0)
    assert device_of("auto", 0) == torch.device("cpu")
    visible(monkeypatch, 1)
    assert {device_of(choice, rank) for choice in ("auto", "cuda") for rank in range(4)} == {torch.device("cuda", 0)}
    visible(monkeypatch, 4)
    assert [device_of("auto", rank) for rank in range(4)] == [torch.device("cuda", rank) for rank in range(4)]
    with pytest.raises(LaunchError, match="--ntasks-per-node=4"):
        device_of("cuda", 4)


def test_who_stays_on_the_cpu_does_not_even_ask_for_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("CUDA was asked"))
    assert device_of("cpu", 3) == torch.device("cpu")
    assert device_name(torch.device("cpu")) == planned_device("cpu") == "cpu"


def test_no_gpu_is_an_error_on_every_rank_at_once(monkeypatch):
    visible(monkeypatch, 0)
    errors = {}

    def program(transport):
        try:
            use_device(World(transport), "cuda")
        except JobError as error:
            errors[transport.rank] = error

    run_ranks(3, program)
    assert sorted(errors) == [0, 1, 2]
    assert all(error.on_every_rank and 'device = "cuda"' in str(error) for error in errors.values())


def test_the_plan_names_the_device_also_where_it_is_not_run(monkeypatch):
    visible(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert planned_device("auto") == "cpu: no GPU is visible"  # whoever has none needs no other torch
    assert planned_device("cuda").startswith("cuda; here no GPU is visible, and torch ")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert planned_device("cuda") == "cuda; here no GPU is visible"
    visible(monkeypatch, 1)
    assert planned_device("auto") == planned_device("cuda") == "cuda: the one GPU visible"
    visible(monkeypatch, 4)
    assert "of 4 GPUs visible that of the local rank" in planned_device("auto")
