"""Whether tools that look for wrong accesses find none: compute-sanitizer in the codecs' kernels, torch's own in the
streams of two training steps.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.on_gpu.rig import Rig, Row, alike

KERNELS = """
import torch
from benchmarks.on_gpu.rates import CODECS
for codec in CODECS:
    if codec.on_device:
        x = torch.randn(1537).to("cuda")
        codec.decode_add(codec.encode(x, seed=1), torch.zeros_like(x))
torch.cuda.synchronize()
"""
STEPS = """
import torch
from benchmarks.on_gpu.nets import small_images
from hpcopt.comm.world import alone
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig
for config in DataParallelConfig(), KaisaConfig(factor_every=1, inverse_every=1, inverse_lag=1):
    net, world, device = small_images(), alone(), torch.device("DEVICE")
    solver = net.solver(config, world, device)
    for step in range(2):
        float(solver.step(net.part(step, world, device)).loss)
"""


def rows(rig: Rig) -> Iterator[Row]:
    """A row a tool."""
    steps = STEPS.replace("DEVICE", "cpu" if rig.rehearsed else "cuda")
    if rig.rehearsed:
        exec(compile(steps, "<steps>", "exec"), {})
        yield Row("two steps", "done, and watched by nothing: a rehearsal")
        return
    yield _watched("torch's sanitizer of streams, two steps", [], steps, {"TORCH_CUDA_SANITIZER": "1"})
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        yield Row("compute-sanitizer", "not installed here")
        return
    for kind in ("memcheck", "racecheck"):
        yield _watched(f"compute-sanitizer, {kind}", [tool, "--tool", kind, "--error-exitcode", "9"], KERNELS, {})


def _watched(what: str, tool: list[str], program: str, environment: dict[str, str]) -> Row:
    command = [*tool, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    clean = done.returncode == 0
    return alike(what, clean, "clean" if clean else (done.stdout + done.stderr)[-300:])
