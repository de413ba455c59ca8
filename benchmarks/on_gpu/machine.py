"""What machine it is: versions, whether MPI's ranks find each other, and what copies and products reach here."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks.on_gpu.rig import Rig, Row
from hpcopt.comm.device import device_name


def rows(rig: Rig) -> Iterator[Row]:
    """Versions and ceilings."""
    yield Row("device", device_name(rig.device))
    yield Row("versions", f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    yield Row("ranks that mpiexec starts", _ranks(rig), goal="2", held=None if rig.rehearsed else _ranks(rig) == "2")
    n = rig.size(1 << 28, 1 << 10)
    there, other = rig.draw(n // 4), rig.draw(n // 4)
    yield _rate("copy on the device", rig, lambda: other.copy_(there), n)
    host = torch.zeros(n // 4)
    yield _rate("copy to the device from pageable memory", rig, lambda: other.copy_(host), n)
    if rig.device.type == "cuda":
        pinned = host.pin_memory()
        yield _rate("copy to the device from pinned memory", rig, lambda: other.copy_(pinned, non_blocking=True), n)
    side = rig.size(8192, 16)
    for dtype in (torch.float32, torch.bfloat16):
        x = rig.draw(side, side).to(dtype)
        _, took_s = rig.beside(lambda: None, lambda x=x: x @ x)
        yield Row(f"product of {side} by {side}, {str(dtype)[6:]}", 2e-12 * side**3 / took_s, "TFLOP/s")
    small = rig.draw(8)
    _, took_s = rig.beside(lambda: None, lambda: [small.add_(1) for _ in range(100)])
    yield Row("a small kernel, one of a hundred in a row", 1e4 * took_s, "us")
    yield Row("a read of one number", 1e6 * min(rig.seconds(small.sum().item) for _ in range(20)), "us")


def _rate(what: str, rig: Rig, run: Callable[[], object], moved_bytes: int) -> Row:
    _, took_s = rig.beside(lambda: None, run)
    return Row(what, 1e-9 * moved_bytes / took_s, "GB/s")


def _ranks(rig: Rig) -> str:
    """How many ranks find each other, of two that are started."""
    if rig.rehearsed:
        return "not asked in a rehearsal"
    if shutil.which("mpiexec") is None:
        return "there is no mpiexec"
    program = "from mpi4py import MPI; print(MPI.COMM_WORLD.size)"
    command = ["mpiexec", "-n", "2", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return " and ".join(sorted(set(done.stdout.split()))) or done.stderr[-200:]
