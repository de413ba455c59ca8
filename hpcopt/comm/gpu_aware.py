"""MPI that takes tensors where they lie on a GPU ("CUDA-aware"): whether this one does is found out without risk.

Nothing is asked in the ranks themselves: one on each host starts ``mpi_trial.py``, which may crash. If MPI fails
anywhere, or a rank has no GPU, all ranks copy tensors to main memory (``hpcopt.comm.staged``).
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch

from hpcopt.comm.transport import Transport

GpuAware = Literal["auto", "yes", "no"]
PATIENCE_S = 120.0
TRIAL, FIT = Path(__file__).with_name("mpi_trial.py"), "yes"
# What a launcher tells its ranks: with it, the trial would take itself for one of them.
LAUNCHERS = (
    *("PMI_", "PMIX_", "PRTE_", "PALS_", "HYDRA_", "SLURM_", "MPI_LOCAL"),
    *("OMPI_COMM_", "OMPI_MCA_orte_", "OMPI_MCA_ess"),
)
DIRECT, STAGED = "MPI takes tensors from GPUs", "tensors of GPUs go by way of main memory"


class Ranks(Protocol):
    """What is asked of a ``World``."""

    transport: Transport
    rank: int
    hosts: list[str]

    def gather_text(self, text: str) -> list[str]: ...


def settle(world: Ranks, choice: GpuAware, device: torch.device) -> str:
    """Let MPI take tensors from GPUs if it can, or if ``choice`` says so; give for a person how they go. Collective.

    Args:
        device: of this rank.
    """
    devices = world.gather_text(device.type) if world.transport.name == "mpi" else []
    if "cuda" not in devices:
        return ""
    if "cpu" in devices:
        return f"{STAGED}: not all ranks have one"
    first = world.hosts.index(world.hosts[world.rank]) == world.rank
    found = world.gather_text(judged(choice, device) if first else FIT)
    refusals = [f"{why}, on {host}" for why, host in zip(found, world.hosts, strict=True) if why != FIT]
    world.transport.host_memory_only = bool(refusals)
    return f"{STAGED}: {refusals[0]}" if refusals else DIRECT


def planned(choice: GpuAware) -> str:
    """What ``settle`` would find on this host, for a person."""
    found = judged(choice, torch.device("cuda", 0))
    return DIRECT if found == FIT else f"{STAGED}: {found}"


def judged(choice: GpuAware, device: torch.device) -> str:
    """``FIT``, or why not."""
    if choice == "auto":
        return tried([sys.executable, "-P", str(TRIAL), str(device)])
    return FIT if choice == "yes" else 'gpu_aware_mpi = "no"'


def tried(command: Sequence[str], patience_s: float = PATIENCE_S, environment: Mapping[str, str] = os.environ) -> str:
    """The last line of a trial's, or how it ended."""
    alone = {name: value for name, value in environment.items() if not name.startswith(LAUNCHERS)}
    try:
        done = subprocess.run(command, env=alone, capture_output=True, text=True, errors="replace", timeout=patience_s)
    except subprocess.TimeoutExpired:
        return "a trial of MPI did not come to its end"
    except OSError as error:
        return f"a trial of MPI could not be started: {error.strerror}"
    if done.returncode != 0:
        return f"a trial of MPI ended with exit code {done.returncode}"
    return next(reversed(done.stdout.splitlines()), "a trial of MPI said nothing")
