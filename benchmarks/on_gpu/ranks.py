"""Ranks that share the device: whether they train as on the CPU, and how much of the wire backward hides.

A rank is a process where mpiexec started this, and a thread elsewhere.
"""

from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import nn

from benchmarks.on_gpu.nets import Net, small_images
from benchmarks.on_gpu.rig import Rig, Row, at_least, at_most
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD
from hpcopt.exchange import Exchange, ExchangeConfig, RingConfig, TwoPhaseConfig
from hpcopt.optim import SgdConfig
from hpcopt.shapes.solver import SolverConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig

SGD = SgdConfig(lr=0.05)
RING, FOUR_BITS = RingConfig(), TwoPhaseConfig(codec=QSGD(bits=4))
TRAINED: dict[str, tuple[SolverConfig, ExchangeConfig, float]] = {  # and how far losses may be from the CPU's
    "dense": (DataParallelConfig(optimizer=SGD), RING, 1e-4),
    "in 4 bits": (DataParallelConfig(optimizer=SGD), FOUR_BITS, 0.05),  # one code that flips is another loss
    "K-FAC": (KaisaConfig(optimizer=SGD, factor_every=1, inverse_every=2), RING, 1e-3),
}
CPU = torch.device("cpu")


def rows(rig: Rig, ranks: int, *, processes: bool) -> Iterator[Row]:
    """What rank 0 tells; nothing on the others."""
    if processes:
        world = connect()
        yield Row("ranks", f"{world.size} processes")
        found = list(_found(rig, small_images(), world))
        yield from found if world.rank == 0 else ()
        world.close()
        return
    yield Row("ranks", f"{ranks} threads")
    net = small_images(tiny=rig.rehearsed)
    net.model()
    yield from run_ranks(ranks, lambda transport: list(_found(rig, net, World(transport))))[0]


def _found(rig: Rig, net: Net, world: World) -> Iterator[Row]:
    """Collective."""
    shared = _worlds(rig.device, world)
    for name, (config, exchange, most) in TRAINED.items():
        found, expected = (
            _losses(net, config, exchange, each, device, rig.size(20, 2))
            for each, device in ((shared, rig.device), (world, CPU))
        )
        apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
        yield at_most(f"losses {name}, relative to the CPU's", apart, most)
    for name, exchange in {"dense": RING, "in 4 bits": FOUR_BITS}.items():
        yield from _hidden(name, exchange, shared, rig)


def _worlds(device: torch.device, world: World) -> World:
    """The world whose collectives carry tensors of the device."""
    return world if device.type == "cpu" else World(StagedTransport(world.transport))


def _losses(
    net: Net, config: SolverConfig, exchange: ExchangeConfig, world: World, device: torch.device, steps: int
) -> list[float]:
    """Of the global batches. Collective."""
    solver = net.solver(config, world, device, exchange)
    return [world.sum([float(solver.step(net.part(step, world, device)).loss or 0.0)])[0] for step in range(steps)]


def _hidden(name: str, config: ExchangeConfig, world: World, rig: Rig) -> Iterator[Row]:
    """The share of the exchange's time that backward hides: all ranks compute in each of the three runs."""
    width, layers = rig.size(2048, 8), rig.size(8, 2)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(rig.device)
    alone_s = _median(world, rig, _pass(model, rig, width, rig.size(1024, 2)))
    exchange = Exchange(world, model, config)

    def exchanged(run: Callable[[], None]) -> Callable[[], None]:
        def whole() -> None:
            exchange.zero()
            run()
            exchange.finish()

        return whole

    def nothing() -> None:
        torch.stack([p.sum() for p in model.parameters()]).sum().backward()

    wire_s = _median(world, rig, exchanged(nothing))
    rows = round(rig.size(1024, 2) * max(1.0, min(64.0, 1.5 * wire_s / alone_s)))  # a backward that could hide it all
    run = _pass(model, rig, width, rows)
    both_s = _median(world, rig, exchanged(run))
    silent = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to(rig.device)
    compute_s = _median(world, rig, _pass(silent, rig, width, rows))
    yield Row(f"exchange {name} alone", 1e3 * wire_s, "ms")
    yield at_least(f"share of it that backward hides, {name}", (compute_s + wire_s - both_s) / wire_s, 0.7)


def _pass(model: nn.Module, rig: Rig, width: int, rows: int) -> Callable[[], None]:
    x = rig.draw(rows, width)
    return lambda: model(x).square().mean().backward()


def _median(world: World, rig: Rig, run: Callable[[], None]) -> float:
    """Seconds of the slowest rank. Collective."""

    def timed() -> float:
        world.barrier()
        return float(world.all_reduce(torch.tensor([rig.seconds(run)], dtype=torch.float64), "max"))

    timed()
    return median(timed() for _ in range(rig.size(5, 1)))
