"""Networks on a graph: GIST beside training the whole, one sub-network alone and a network that sees no edges; and the
halos of one graph over ranks, dense, in a codec and stale. Ranks are threads of one process, so bytes and scores are
those of any launch, and seconds are not measured but for CPU seconds of a single network's epoch.

    python -m hpcopt.prepare wordnet
    python benchmarks/graphs.py gist --network graphsage --width 1024 --epochs 10 --clusters 40 >> graphs.jsonl
    python benchmarks/graphs.py halos --width 256 --epochs 60 --ranks 2 >> graphs.jsonl
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from functools import partial
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
from hpcopt.optim import AdamWConfig, ConstantConfig, CosineConfig
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
    """Train on one rank; give the mean loss of the last epoch, the scores, and CPU seconds of an epoch."""
    start_s, losses = time.process_time(), list[float]()
    solver.model.train()
    for batch in islice(workload.train_batches(0, 1, 0), epochs * workload.steps_per_epoch):
        losses.append(solver.step(batch).loss or 0.0)
    cpu_s = (time.process_time() - start_s) / epochs
    solver.gather()
    loss = statistics.mean(losses[-workload.steps_per_epoch :])
    return {"loss": loss, "cpu_s_an_epoch": round(cpu_s, 3), **scores(workload, solver.model)}


def gist(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The whole, GIST of it, one sub-network alone, and no edges, all for the same epochs."""
    rates = {
        "optimizer": AdamWConfig(lr=options.lr, weight_decay=0.0),
        "schedule": CosineConfig() if options.cosine else ConstantConfig(),
    }

    def run(what: str, network: str, width: int, solver: SolverConfig) -> dict[str, Any]:
        workload = NodeClassificationConfig(
            data=options.data,
            clusters=options.clusters,
            batch=options.batch,
            evaluate_on=options.evaluate_on,
            model=NETWORKS[network](hidden=(width,) * options.layers, dropout=options.dropout),
        ).build(Context(run_seed=options.seed))
        exchange = RingConfig() if solver.needs else None
        steps = options.epochs * workload.steps_per_epoch
        context = Context(exchange=exchange, steps=steps, run_seed=options.seed)
        built = solver.build(Task(workload.model, workload.loss), context)
        return {"what": what, "network": network, "width": width, **trained(workload, built, options.epochs)}

    plain = DataParallelConfig(**rates)
    runs = {"whole": partial(run, "the whole", options.network, options.width, plain)}
    for parts in options.parts:
        solver = GistConfig(parts=parts, every=options.every, **rates)
        runs[f"gist{parts}"] = partial(run, f"gist, {parts} parts", options.network, options.width, solver)
        runs[f"alone{parts}"] = partial(run, f"one of {parts} alone", options.network, options.width // parts, plain)
    runs["no_edges"] = partial(run, "no edges", "node_mlp", options.width, plain)
    for name in options.runs or runs:
        yield runs[name]()


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
    parser.add_argument("--epochs", type=int, default=60, help="without clusters an epoch is a step")
    parser.add_argument("--clusters", type=int, help="parts that the graph is cut into; gist")
    parser.add_argument("--batch", type=int, default=1_000_000, help="training nodes of a step, about; gist")
    parser.add_argument("--dropout", type=float, default=0.0, help="gist")
    parser.add_argument("--cosine", action="store_true", help="schedule of the learning rate; gist")
    parser.add_argument("--evaluate-on", choices=["test", "validation"], default="test", help="gist")
    parser.add_argument("--every", type=int, default=10, help="steps of a round")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--runs", nargs="*", help="whole, gist2, alone2, ..., no_edges (default: all); gist")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--ways", nargs="*", help="of the halos, by name (default: all)")
    options = parser.parse_args()
    names = ("epochs", "every", "lr", "seed", "clusters", "batch", "dropout", "cosine", "evaluate_on")
    settings = {name: getattr(options, name) for name in names}
    for found in (gist if options.what == "gist" else halos)(options):
        print(json.dumps({**found, **settings, "layers": options.layers, "data": options.data.name}), flush=True)


if __name__ == "__main__":
    main()
