"""Which device a rank computes on: the one GPU that it sees, or of several its local rank's, or the CPU.

A rank that stays on the CPU never touches CUDA: a context costs some hundred MB of memory and a good part of a second,
for each of 128 ranks.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from hpcopt.comm import gpu_aware
from hpcopt.comm.gpu_aware import GpuAware
from hpcopt.comm.launch import gpu_of
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.phases import PhaseClock, Timeline

DeviceChoice = Literal["auto", "cpu", "cuda"]


def use_device(world: World, choice: DeviceChoice = "auto", gpu_aware_mpi: GpuAware = "auto") -> torch.device:
    """Take this rank's device, and let the world's collectives carry tensors that live there. Collective.

    Several ranks may share one GPU, if it is the only one that they see.

    Args:
        world: of the ranks; its ``gpu_path`` then says how tensors of a GPU travel.
        choice: which device.
        gpu_aware_mpi: whether MPI is given tensors on a GPU; auto: if a trial shows that it takes them.

    Raises:
        JobError: on all ranks: "cuda" was asked for, and a rank sees no GPU.
        LaunchError: on all ranks: a host has more ranks than the several GPUs that they see.
    """
    with world.together():
        device = device_of(choice, world.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if choice != "cpu" and world.size > 1:
        world.gpu_path = gpu_aware.settle(world, gpu_aware_mpi, device)
    if device.type == "cuda" and world.transport.host_memory_only:
        world.transport = StagedTransport(world.transport)
    return device


def device_of(choice: DeviceChoice, local_rank: int) -> torch.device:
    """The device of a rank.

    Raises:
        JobError: "cuda" was asked for, and there is no GPU.
        LaunchError: there are several GPUs, but fewer than ranks.
    """
    gpu = None if choice == "cpu" else gpu_of(local_rank, torch.cuda.device_count())
    if gpu is not None:
        return torch.device("cuda", gpu)
    if choice == "cuda":
        raise JobError(f'[run] device = "cuda", but {_none_visible()}; use device = "auto" or "cpu"')
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """For people and metrics: "cpu", or the card's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def clock_of(device: torch.device, more: Sequence[str] = ()) -> PhaseClock:
    """A clock of PHASES and more, by the device's own time. Under Nsight Systems, which sets the variable, it shows
    the phases too.
    """
    if device.type != "cuda":
        return PhaseClock(more)
    ranges = torch.cuda.nvtx.range if "NVTX_INJECTION64_PATH" in os.environ else None
    event = partial(torch.cuda.Event, enable_timing=True)
    return PhaseClock(more, Timeline(event, ranges))


def peak_bytes(device: torch.device) -> int | None:
    """The most memory of a GPU that this rank's tensors have taken; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def planned_device(choice: DeviceChoice) -> str:
    """What ``device_of`` would do on this host, for a person; a host to submit from may have no GPU where others do."""
    if choice == "cpu":
        return "cpu"
    visible = torch.cuda.device_count()
    if visible == 0:
        return "cpu: no GPU is visible" if choice == "auto" else f"cuda; here {_none_visible()}"
    return "cuda: the one GPU visible" if visible == 1 else f"cuda: of {visible} GPUs visible that of the local rank"


def _none_visible() -> str:
    """That there is no GPU; where one was asked for, also that this torch would see none."""
    built = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
    return "no GPU is visible" + (
        "" if built else f", and torch {torch.__version__}, built without CUDA, would see none"
    )
