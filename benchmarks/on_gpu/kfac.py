"""K-FAC beside SGD: what a step takes, at two frequencies; memory against its plan; losses against the CPU's."""

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.on_gpu.nets import Net, bert, resnet50, small_images
from benchmarks.on_gpu.rig import Rig, Row, at_most
from hpcopt.comm.world import alone
from hpcopt.optim import SgdConfig
from hpcopt.shapes.solver import Solver
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig, KaisaSolver

SGD = SgdConfig(lr=0.01)
CPU = torch.device("cpu")
GOALS = {(1, 10): 1.35, (10, 100): 1.06}  # steps from statistics, and inverses, to the next: of SGD's step


def rows(rig: Rig) -> Iterator[Row]:
    """Small networks first: what they find decides what the others are worth."""
    for method in rig.size(("cholesky", "eigen", "low_rank"), ("cholesky",)):
        config = KaisaConfig(factor_every=1, inverse_every=2, method=method, optimizer=SGD)
        found, expected = (_losses(config, device, rig) for device in (rig.device, CPU))
        apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
        yield at_most(f"losses with {method}, relative to the CPU's", apart, 1e-3)
    yield from _steps("ResNet-50", small_images(tiny=True) if rig.rehearsed else resnet50(), rig)
    yield from _steps("BERT-base", bert(small=rig.rehearsed), rig)


def _losses(config: KaisaConfig, device: torch.device, rig: Rig) -> list[float]:
    net, world = small_images(tiny=rig.rehearsed), alone()
    solver = net.solver(config, world, device)
    return [float(solver.step(net.part(step, world, device)).loss or 0.0) for step in range(rig.size(6, 2))]


def _steps(name: str, net: Net, rig: Rig) -> Iterator[Row]:
    """Seconds of SGD's step and of K-FAC's, over whole periods; and what K-FAC adds to memory."""
    sgd_s, sgd_bytes, _ = _trained(net, DataParallelConfig(optimizer=SGD), rig, rig.size(20, 1))
    yield Row(f"{name}: a step of SGD", 1e3 * sgd_s, "ms")
    for (factor_every, inverse_every), goal in list(GOALS.items())[: rig.size(2, 1)]:
        every = {"factor_every": factor_every, "inverse_every": inverse_every}
        config = KaisaConfig(optimizer=SGD, skip=net.skip, max_size=4608, **every)
        steps = rig.size(max(20, inverse_every), 1)
        step_s, (held, peak), solver = _trained(net, config, rig, steps)
        yield at_most(f"{name}: a step of K-FAC at {factor_every}/{inverse_every}, of SGD's", step_s / sgd_s, goal)
    if rig.device.type == "cuda" and isinstance(solver, KaisaSolver):
        plan = solver.kaisa.memory
        yield _planned(f"{name}: memory that K-FAC holds", held - sgd_bytes[0], plan.held_bytes)
        yield _planned(f"{name}: and at its peak", peak - sgd_bytes[1], plan.held_bytes + plan.passing_bytes)


def _trained(net: Net, config: Any, rig: Rig, steps: int) -> tuple[float, tuple[int, int], Solver]:
    """Mean seconds of a step over whole periods after the first refresh, and bytes of the device's memory: held after
    a step, and at the peak.
    """
    world, device = alone(), rig.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    solver = net.solver(config, world, device, narrow=True)
    batches = [net.part(step, world, device) for step in range(rig.size(4, 1))]

    def run(count: int) -> None:
        for step in range(count):
            solver.step(batches[step % len(batches)])

    run(rig.size(2, 1))  # the first refresh, and what libraries choose once
    took_s = median(rig.seconds(lambda: run(steps)) for _ in range(rig.size(2, 1))) / steps
    if device.type != "cuda":
        return took_s, (0, 0), solver
    return took_s, (torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)), solver


def _planned(what: str, found: int, planned: int) -> Row:
    ratio = found / max(1, planned)
    return Row(f"{what}, of its plan", ratio, goal="0.95 to 1.05", held=0.95 <= ratio <= 1.05)
