"""Networks on a graph: GIST beside training the whole, one sub-network alone and a network that sees no edges; and the
halos of one graph over ranks, dense, in a codec and stale. Ranks are threads of one process, so bytes and scores are
those of any launch, and seconds are not measured but for CPU seconds of a single network's epoch.

    python -m hpcopt.prepare wordnet
    python benchmarks/graphs.py gist --width 1024 --epochs 60 --parts 2 4 >> graphs.jsonl
    python benchmarks/graphs.py halos --width 256 --epochs 60 --ranks 2 >> graphs.jsonl
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, SignBits, TopK
from hpcopt.exchange import RingConfig
from hpcopt.models.graph.networks import GcnConfig, GraphSageConfig, NodeMlpConfig
from hpcopt.optim import AdamWConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task
from hpcopt.shapes.workload import Workload
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.full_graph.solver import FullGraphConfig, HaloConfig
from hpcopt.solvers.gist.solver import GistConfig
from hpcopt.workloads.node_classification import NodeClassificationConfig

NETWORKS = {"gcn": GcnConfig, "graphsage": GraphSageConfig, "node_mlp": NodeMlpConfig}


def scores(workload: Workload, model: torch.nn.Module) -> dict[str, float]:
    """Of all test nodes."""
    model.eval()
    with torch.no_grad():
        sums = workload.score(model, next(workload.test_batches(0, 1)))
    model.train()
    return {name: round(x, 5) for name, x in workload.finish({k: v.double() for k, v in sums.items()}).items()}


def trained(workload: Workload, solver: Solver, epochs: int) -> dict[str, Any]:
    """Train on one rank; give the last loss, the scores, and CPU seconds of an epoch."""
    start_s, loss = time.process_time(), None
    for batch in islice(workload.train_batches(0, 1, 0), epochs):
        loss = solver.step(batch).loss
    cpu_s = (time.process_time() - start_s) / epochs
    solver.gather()
    return {"loss": loss, "cpu_s_an_epoch": round(cpu_s, 3), **scores(workload, solver.model)}


def gist(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The whole, GIST of it, one sub-network alone, and no edges, all for the same epochs."""
    optimizer = AdamWConfig(lr=options.lr, weight_decay=0.0)

    def run(what: str, network: str, width: int, solver: SolverConfig) -> dict[str, Any]:
        model = NETWORKS[network](hidden=(width,) * options.layers)
        workload = NodeClassificationConfig(data=options.data, model=model).build(Context(run_seed=options.seed))
        exchange = RingConfig() if solver.needs else None
        context = Context(exchange=exchange, steps=options.epochs, run_seed=options.seed)
        built = solver.build(Task(workload.model, workload.loss), context)
        return {"what": what, "network": network, "width": width, **trained(workload, built, options.epochs)}

    plain = DataParallelConfig(optimizer=optimizer)
    yield run("the whole", options.network, options.width, plain)
    for parts in options.parts:
        solver = GistConfig(parts=parts, every=options.every, optimizer=optimizer)
        yield run(f"gist, {parts} parts", options.network, options.width, solver)
        yield run(f"one of {parts} alone", options.network, options.width // parts, plain)
    yield run("no edges", "node_mlp", options.width, plain)


def halos(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One graph over ranks, with halos that travel in several ways."""
    ways = {
        "dense": HaloConfig(),
        "every 20th step": HaloConfig(every=20),
        "every 40th step": HaloConfig(every=40),
        "sign_bits": HaloConfig(codec=SignBits()),
        "topk .02": HaloConfig(codec=TopK(fraction=0.02)),
        "topk .01": HaloConfig(codec=TopK(fraction=0.01)),
        "topk .1, every 4th step": HaloConfig(codec=TopK(fraction=0.1), every=4),
        "qsgd": HaloConfig(codec=QSGD()),
    }
    for what in options.ways or ways:
        model = NETWORKS[options.network](hidden=(options.width,) * options.layers)
        job = NodeClassificationConfig(data=options.data, model=model)
        workloads = [job.build(Context(run_seed=options.seed)) for _ in range(options.ranks)]
        solver = FullGraphConfig(optimizer=AdamWConfig(lr=options.lr, weight_decay=0.0), halo=ways[what])

        def program(transport: Transport, workloads: Any = workloads, solver: Any = solver) -> tuple[float, float, Any]:
            world = World(transport)
            workload, context = (
                workloads[world.rank],
                Context(world=world, exchange=RingConfig(), steps=options.epochs, run_seed=options.seed),
            )
            built, loss, sent = solver.build(Task(workload.model, workload.loss), context), 0.0, 0.0
            for batch in islice(workload.train_batches(0, 1, 0), options.epochs):
                stats = built.step(batch)
                loss, sent = stats.loss or 0.0, sent + stats.scalars["halo_bytes"].value  # type: ignore[union-attr]
            return loss, sent, scores(workload, built.model) if world.rank == 0 else None

        results = run_ranks(options.ranks, program)
        loss, sent = (sum(result[at] for result in results) for at in (0, 1))
        found = {"halos": what, "ranks": options.ranks, "halo_bytes_an_epoch": round(sent / options.epochs)}
        yield {**found, "network": options.network, "width": options.width, "loss": loss, **results[0][2]}


def main() -> None:
    """Print a line of JSON for each run, as soon as it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["gist", "halos"])
    parser.add_argument("--data", type=Path, default=Path("data/wordnet"))
    parser.add_argument("--network", choices=NETWORKS, default="gcn")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2, help="hidden ones")
    parser.add_argument("--epochs", type=int, default=60, help="an epoch is a step")
    parser.add_argument("--every", type=int, default=10, help="steps of a round")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--ways", nargs="*", help="of the halos, by name (default: all)")
    options = parser.parse_args()
    settings = {"epochs": options.epochs, "every": options.every, "lr": options.lr, "seed": options.seed}
    for found in (gist if options.what == "gist" else halos)(options):
        print(json.dumps({**found, **settings, "layers": options.layers, "data": options.data.name}), flush=True)


if __name__ == "__main__":
    main()
