"""An outer step of DiLoCo, ours beside torchft's: seconds and bytes, on the same hosts and links, in turns.

    sbatch --exclusive benchmarks/outer_step.sh --link 1mbit                 one rank on each of four nodes
    mpirun -n 2 python benchmarks/outer_step.py                          the same where no link is slow

Both average a model's changes every ten steps and step by Nesterov momentum; the inner steps are SGD's, on gradients
that are there, so that nearly all of the time is the outer step's. torchft's sums travel by gloo in float32. Bytes are
those of the host's network interface, what keeps the replicas in touch included. torchft is looked for in the Python
path: ``pip install torchft --target FOLDER``.
"""

import argparse
import datetime
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.world import World, connect
from hpcopt.compress import ChunkedTopK, Half
from hpcopt.exchange import ExchangeConfig, RingConfig, TwoPhaseConfig
from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig

try:
    from training import sent_by
except ImportError:
    from benchmarks.training import sent_by

EVERY = 10
Step = Callable[[], object]
OURS: dict[str, ExchangeConfig] = {
    "float32 ring": RingConfig(overlap=False),
    "bf16 ring": RingConfig(codec=Half(), overlap=False),
    "chunked top-k, 2 bits": TwoPhaseConfig(codec=ChunkedTopK(k=256), overlap=False),
}


def network(values: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """One layer, with gradients, and SGD."""
    torch.manual_seed(0)
    model = nn.Linear(values // 100, 100, bias=False)
    model.weight.grad = torch.randn_like(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def ours(world: World, values: int, exchange: ExchangeConfig) -> Step:
    model, optimizer = network(values)
    local = LocalSteps(model, optimizer, LocalStepsConfig(every=EVERY), world=world, exchange=exchange)

    def step() -> None:
        optimizer.step()
        local.step()

    return step


def torchfts(world: World, values: int, kept: ExitStack) -> Step:
    """A replica group a rank. Collective."""
    from torch.distributed import TCPStore
    from torchft.coordination import LighthouseServer
    from torchft.local_sgd import DiLoCo
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    model, optimizer = network(values)
    port = torch.zeros(1, dtype=torch.int64)
    if world.rank == 0:
        lighthouse = LighthouseServer(bind="0.0.0.0:0", min_replicas=world.size, join_timeout_ms=60000)
        kept.callback(lighthouse.shutdown)
        port[0] = int(lighthouse.address().rsplit(":", 1)[1])
    host = torch.zeros(64, dtype=torch.uint8)
    name = socket.gethostname().encode()
    host[: len(name)] = torch.tensor(list(name), dtype=torch.uint8)
    world.broadcast(port)
    world.broadcast(host)
    store = TCPStore(socket.gethostname(), 0, is_master=True, wait_for_workers=False)
    kept.callback(lambda: store)  # lives as long
    patience = datetime.timedelta(seconds=120)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=patience),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=world.size,
        use_async_quorum=False,
        timeout=patience,
        quorum_timeout=patience,
        rank=0,
        world_size=1,
        store_addr=socket.gethostname(),
        store_port=store.port,
        lighthouse_addr=f"http://{bytes(host.tolist()).decode().rstrip(chr(0))}:{int(port)}",
        replica_id=f"rank{world.rank}",
        init_sync=False,
    )
    kept.callback(manager.shutdown)
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    kept.enter_context(DiLoCo(manager, [model], optimizer, outer, sync_every=EVERY))
    return optimizer.step


def measure(world: World, steps: dict[str, Step], interface: str, turns: int) -> dict[str, tuple[float, float, float]]:
    """Medians over turns of a round's wall and CPU seconds, on the slowest rank, and of the bytes that a rank sent.
    Collective; the first turn does not count.
    """
    seen: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in range(1 + turns):
        for name, step in steps.items():
            world.barrier()
            before_s, cpu_s, before = time.perf_counter(), time.process_time(), sent_by(interface) or 0
            for _ in range(EVERY):
                step()
            taken = [time.perf_counter() - before_s, time.process_time() - cpu_s]
            slowest = world.all_reduce(torch.tensor(taken, dtype=torch.float64), "max").tolist()
            sent = torch.tensor([float((sent_by(interface) or 0) - before)], dtype=torch.float64)
            seen[name].append([*slowest, float(world.all_reduce(sent)) / world.size])
    medians = {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in seen.items()
    }
    return {name: (wall_s, cpu_s, sent) for name, (wall_s, cpu_s, sent) in medians.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--values", type=int, default=78000, help="parameters of the model")
    p.add_argument("--link", default="memory", help="rate of the links, as it is to be told")
    p.add_argument("--interface", default="e0", help="the nodes' network interface")
    p.add_argument("--turns", type=int, default=7)
    options: Any = p.parse_args()
    torch.set_num_threads(1)
    world = connect("mpi")
    with ExitStack() as kept:
        steps = {f"ours, {name}": ours(world, options.values, exchange) for name, exchange in OURS.items()}
        steps["torchft DiLoCo"] = torchfts(world, options.values, kept)
        found = measure(world, steps, options.interface, options.turns)
        for name, (wall_s, cpu_s, sent) in found.items() if world.rank == 0 else ():
            print(
                f"| {options.link} | {options.values:,} | {name} | {1e3 * wall_s:.0f} ms | {1e3 * cpu_s:.0f} ms "
                f"| {sent / 1e3:.1f} KB |",
                flush=True,
            )
        world.barrier()
    world.close()
    leave_exit_code(0)


if __name__ == "__main__":
    main()
