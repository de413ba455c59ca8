"""Training on a whole graph: ranks of hpcopt beside one process of PyG, with the same network, optimizer and steps.

    mpirun -n 2 python benchmarks/pyg.py hpcopt --width 256 --epochs 40
    python benchmarks/pyg.py pyg --width 256 --epochs 40        # where torch_geometric is installed

A line of JSON has the medians of an epoch's seconds, by the clock and of the processors (of the busiest rank), and the
test accuracy after the last one. A process has one thread, unless ``--threads`` says otherwise.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.comm.world import World, alone, connect
from hpcopt.exchange import RingConfig
from hpcopt.models.graph.networks import GraphSageConfig
from hpcopt.optim import AdamWConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.shapes.workload import Workload
from hpcopt.solvers.full_graph.solver import FullGraphConfig
from hpcopt.trainer.loop import evaluate
from hpcopt.workloads.node_classification import NodeClassificationConfig

WARM = 2


def timed(epochs: int, step: Callable[[], Any]) -> dict[str, float]:
    """Medians of an epoch's seconds, after some to warm up."""
    wall_s, cpu_s = list[float](), list[float]()
    for _ in range(epochs):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        step()
        wall_s.append(time.perf_counter() - start_s)
        cpu_s.append(time.process_time() - start_cpu_s)
    return {"wall_s": statistics.median(wall_s[WARM:]), "cpu_s": statistics.median(cpu_s[WARM:])}


def ours(options: argparse.Namespace, workload: Workload, world: World) -> dict[str, float]:
    """The solver ``full_graph`` with dense halos. Collective."""
    context = Context(world=world, exchange=RingConfig(), steps=options.epochs, run_seed=options.seed)
    config = FullGraphConfig(optimizer=AdamWConfig(lr=options.lr, weight_decay=0.0))
    solver = config.build(Task(workload.model, workload.loss), context)
    batches = workload.train_batches(0, 1, 0)
    mine = timed(options.epochs, lambda: solver.step(next(batches)))
    busiest = world.all_reduce(torch.tensor(list(mine.values()), dtype=torch.float64), "max").tolist()
    return dict(zip(mine, busiest, strict=True)) | evaluate(alone(), workload, solver.model)


class PygSage(nn.Module):
    """The same layers of PyG's."""

    def __init__(self, widths: list[int]) -> None:
        from torch_geometric.nn import SAGEConv

        super().__init__()
        self.layers = nn.ModuleList([SAGEConv(a, b) for a, b in pairwise(widths)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in widths[1:-1]])

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = norm(layer(x, adjacency)).relu()
        logits: Tensor = self.layers[-1](x, adjacency)
        return logits


def peers(options: argparse.Namespace, workload: Workload) -> dict[str, float]:
    """PyG, on the adjacency as compressed rows: its quickest way on a processor."""
    batch, test = next(workload.train_batches(0, 1, 0)), next(workload.test_batches(0, 1))
    graph, (_, classes) = batch.graph, workload.model(batch.graph, batch.features).shape
    ones = torch.ones(len(graph.indices))
    adjacency = torch.sparse_csr_tensor(graph.indptr, graph.indices, ones, (len(graph), len(graph)))
    model = PygSage([batch.features.shape[1], *[options.width] * options.layers, classes])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(adjacency, batch.features)[batch.targets], batch.labels).backward()
        optimizer.step()

    figures = timed(options.epochs, step)
    with torch.no_grad():
        found = model(adjacency, test.features)[test.targets].argmax(1)
    return figures | {"test_accuracy": float((found == test.labels).double().mean())}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whose", choices=["hpcopt", "pyg"])
    parser.add_argument("--data", type=Path, default=Path("data/wordnet"))
    for name, default in (("width", 256), ("layers", 2), ("epochs", 40), ("seed", 0), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    world = connect() if options.whose == "hpcopt" else alone()
    model = GraphSageConfig(hidden=(options.width,) * options.layers)
    workload = NodeClassificationConfig(data=options.data, model=model).build(Context(run_seed=options.seed))
    figures = ours(options, workload, world) if options.whose == "hpcopt" else peers(options, workload)
    if world.rank == 0:
        settings = {name: getattr(options, name) for name in ("width", "layers", "epochs", "lr", "seed", "threads")}
        rounded = {name: round(x, 4) for name, x in figures.items()}
        print(json.dumps({"whose": options.whose, "ranks": world.size, **rounded, **settings}), flush=True)


if __name__ == "__main__":
    main()
