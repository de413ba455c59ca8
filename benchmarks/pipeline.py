"""A network over ranks: the pipeline with back-propagation, local parallelism in its forms, and Block-ADMM.

    python -m benchmarks.pipeline accuracy [METHOD ...] [--network vit]    training loss and test accuracy, three seeds
    mpirun -n 4 python -m benchmarks.pipeline speed [METHOD ...]           samples a second, idle share, memory a rank
    MASTER_ADDR=... MASTER_PORT=... RANK=r WORLD_SIZE=4 python -m benchmarks.pipeline speed --gloo   also torch's own
    python -m benchmarks.pipeline table

Accuracy is measured on one rank: any number of ranks gives the same bits. Each run is a line of pipeline.jsonl.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.block_admm.bench import LOSS, Images, fashion_mnist, spread
from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.process_group import ProcessGroupTransport
from hpcopt.comm.world import World, alone, connect
from hpcopt.exchange import RingConfig
from hpcopt.models.vit import VitConfig
from hpcopt.optim import CosineConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Solver, SolverConfig, Task
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.pipeline.local_parallel import LocalParallelConfig
from hpcopt.solvers.pipeline.solver import PipelineConfig
from hpcopt.solvers.pipeline.split import SplitSolver

RUNS = Path(__file__).with_suffix(".jsonl")
BATCH, BLOCKS, WARM_STEPS = 128, 4, 3
ADAM: dict[str, Any] = {"optimizer": AdamWConfig(lr=1e-3, weight_decay=0), "schedule": CosineConfig()}
METHODS: dict[str, Callable[[], SolverConfig]] = {
    "pipeline, 1F1B": lambda: PipelineConfig(blocks=BLOCKS, **ADAM),
    "pipeline, GPipe": lambda: PipelineConfig(blocks=BLOCKS, order="gpipe", **ADAM),
    "chunked": lambda: LocalParallelConfig(blocks=2, accumulate=4, **ADAM),
    "overlapping": lambda: LocalParallelConfig(blocks=BLOCKS, reach=2, accumulate=4, **ADAM),
    "overlapping, 2 late": lambda: LocalParallelConfig(blocks=BLOCKS, reach=2, staleness=2, accumulate=4, **ADAM),
    "greedy": lambda: LocalParallelConfig(blocks=BLOCKS, accumulate=4, **ADAM),
    "block_admm": lambda: BlockAdmmConfig(blocks=BLOCKS, form="online", rho=100, **ADAM),
}
TORCH = "torch, 1F1B"


def network(kind: str) -> nn.Sequential:
    """784-512-512-512-10 with ReLU, or a vision transformer of four layers of width 32."""
    if kind == "vit":
        return nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)), *VitConfig(patch=7, layers=4, width=32).build((1, 28, 28), 10)
        )
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((784, 512, 512, 512, 10)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def build(method: str, kind: str, seed: int, steps: int, world: World) -> Solver:
    """The method's solver; on one rank without micro-batches, which change nothing but the time."""
    torch.manual_seed(seed)
    context = Context(world=world, exchange=RingConfig(), steps=steps, run_seed=seed)
    config = METHODS[method]()
    if world.size == 1:
        config = config.model_copy(update={"accumulate": 1})
    return config.build(Task(network(kind), LOSS), context)


def accuracy(method: str, kind: str, seed: int, train: Images, test: Images, epochs: float) -> dict[str, Any]:
    """Train on one rank; the loss of the whole network over the training samples, and the test accuracy."""
    steps = round(epochs * (len(train.y) // BATCH))
    solver, start_s = build(method, kind, seed, steps, alone()), time.process_time()
    for batch in train.batches(BATCH, steps, seed):
        solver.step(batch)
    cpu_s = time.process_time() - start_s
    solver.gather()
    solver.model.eval()
    with torch.no_grad():
        parts = zip(train.x.split(2000), train.y.split(2000), strict=True)
        loss = sum(float(nn.functional.cross_entropy(solver.model(x), y, reduction="sum")) for x, y in parts)
    return {"loss": loss / len(train.y), "accuracy": test.accuracy(solver.model), "cpu_s": cpu_s}


def speed(method: str, kind: str, train: Images, size: int, steps: int, world: World) -> dict[str, Any]:
    """Train for some steps on all ranks; samples a second, and each rank's idle share and memory. Collective."""
    solver = build(method, kind, 0, steps + WARM_STEPS, world)
    idle, start_s, kept = 0.0, 0.0, Kept()
    for step, batch in enumerate(train.batches(size, steps + WARM_STEPS, 0)):
        if step == WARM_STEPS - 1:
            with kept:
                solver.step(batch)
            solver.gather()
            world.barrier()
            world.traffic.lap()
            start_s = time.perf_counter()
            continue
        told = solver.step(batch).scalars
        idle += sum(value.value for name, value in told.items() if name.startswith("idle")) * (step >= WARM_STEPS)
    own_s, sent = time.perf_counter() - start_s, world.traffic.lap().sent_bytes
    world.barrier()
    elapsed_s = time.perf_counter() - start_s
    state = trained_bytes(solver) if isinstance(solver, SplitSolver) else 0
    figures = world.all_gather(torch.tensor([own_s, idle / steps, state + kept.most, sent / steps]).double())
    return {
        "samples_per_s": size * steps / elapsed_s,
        "idle": figures[:, 1].tolist(),
        "memory_bytes": figures[:, 2].tolist(),
        "sent_bytes": figures[:, 3].tolist(),
    }


class Kept:
    """Counts the bytes that autograd keeps at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> None:
        counts = self

        class One:
            def __init__(self, x: torch.Tensor) -> None:
                self.x = x
                counts.now += x.nbytes * (not isinstance(x, nn.Parameter))
                counts.most = max(counts.most, counts.now)

            def __del__(self) -> None:
                counts.now -= self.x.nbytes * (not isinstance(self.x, nn.Parameter))

        self._hooks = torch.autograd.graph.saved_tensors_hooks(One, lambda one: one.x)
        self._hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def trained_bytes(solver: SplitSolver) -> int:
    """Of a rank's own parameters, their gradients and their optimizers' state."""
    tensors = [x for piece in solver.pieces for _, x in piece.tensors()]
    gradients = [x.grad for x in tensors if x.grad is not None]
    return sum(x.nbytes for x in [*tensors, *gradients])


def torch_speed(kind: str, train: Images, size: int, steps: int, world: World) -> dict[str, Any]:
    """The same by ``torch.distributed.pipelining``: the same stages, micro-batches and optimizer."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    from hpcopt.pipeline.cut import cut

    torch.manual_seed(0)
    blocks, part = cut(network(kind), LOSS.example, blocks=BLOCKS), size // 4
    example = LOSS.example.repeat(part, 1)
    for block in blocks[: world.rank]:
        example = block(example).detach()
    stage = PipelineStage(blocks[world.rank], world.rank, world.size, torch.device("cpu"), input_args=(example,))
    schedule = Schedule1F1B(stage, 4, loss_fn=nn.functional.cross_entropy)
    optimizer = torch.optim.AdamW(blocks[world.rank].parameters(), lr=1e-3, weight_decay=0)
    start_s = 0.0
    for step, batch in enumerate(train.batches(size, steps + WARM_STEPS, 0)):
        if step == WARM_STEPS:
            world.barrier()
            start_s = time.perf_counter()
        optimizer.zero_grad()
        if world.rank == 0:
            schedule.step(batch.tensors["images"])
        elif world.rank == world.size - 1:
            schedule.step(target=batch.tensors["labels"])
        else:
            schedule.step()
        optimizer.step()
    world.barrier()
    return {"samples_per_s": size * steps / (time.perf_counter() - start_s)}


def recorded(what: str) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """Runs of a kind by setting and method; of runs with the same names the last one counts."""
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    latest = {(r["where"], r["method"], r["seed"]): r for r in lines if r["what"] == what}
    keys = dict.fromkeys((where, method) for where, method, _ in latest)
    for key in keys:
        yield key, [run for name, run in latest.items() if name[:2] == key]


def table() -> None:
    """Print what is recorded."""
    print("| network, samples, epochs | method | seeds | training loss | test accuracy | CPU s |")
    print("|---|---|---|---|---|---|")
    for (where, method), runs in recorded("accuracy"):
        loss, score, cpu = ([run[name] for run in runs] for name in ("loss", "accuracy", "cpu_s"))
        print(f"| {where} | {method} | {len(runs)} | {spread(loss)} | {spread(score)} | {sum(cpu) / len(cpu):.0f} |")
    print(
        "\n| link | method | samples/s | idle, ranks 0 to 3 | KiB sent a step | MB a rank |\n|---|---|---|---|---|---|"
    )
    for (where, method), runs in recorded("speed"):
        (run,) = runs
        told = any(run.get("idle", []))  # by solvers that tell it
        idle = ", ".join(f"{share:.0%}" for share in run["idle"]) if told else ""
        sent = ", ".join(f"{sent / 1024:.0f}" for sent in run.get("sent_bytes", []))
        memory = ", ".join(f"{memory / 1e6:.1f}" for memory in run["memory_bytes"]) if told else ""
        print(f"| {where} | {method} | {run['samples_per_s']:.0f} | {idle} | {sent} | {memory} |")


def record(what: str, where: str, method: str, seed: int, figures: dict[str, Any]) -> None:
    """Append a run."""
    line = json.dumps({"what": what, "where": where, "method": method, "seed": seed} | figures)
    line = json.dumps(json.loads(line, parse_float=lambda digits: float(f"{float(digits):.6g}")))
    with RUNS.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["accuracy", "speed", "table"])
    p.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; by default all")
    p.add_argument("--network", choices=["mlp", "vit"], default="mlp")
    p.add_argument("--samples", type=int, default=60000, help="accuracy: to train on")
    p.add_argument("--epochs", type=float, default=2, help="accuracy: passes over them")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--batch", type=int, default=BATCH, help="speed: samples in a step")
    p.add_argument("--steps", type=int, default=20, help="speed: that are timed")
    p.add_argument("--link", default="memory", help="speed: as it is to stand in the table")
    p.add_argument("--gloo", action="store_true", help="speed: over torch's gloo in place of MPI")
    choice = p.parse_args()
    torch.set_num_threads(1)
    if choice.what == "table":
        table()
    elif choice.what == "accuracy":
        train, test = fashion_mnist(choice.samples)
        where = f"{choice.network}, {choice.samples}, {choice.epochs:g}"
        for seed, method in itertools.product(choice.seeds, choice.methods or METHODS):
            figures = accuracy(method, choice.network, seed, train, test, choice.epochs)
            record("accuracy", where, method, seed, figures)
    else:
        run_speed(choice)


def run_speed(choice: argparse.Namespace) -> None:
    """Every method in turn, on the ranks that there are."""
    if choice.gloo:
        torch.distributed.init_process_group("gloo")
        world = World(ProcessGroupTransport())
    else:
        world = connect()
    train, _ = fashion_mnist(5000)
    for method in choice.methods or [*METHODS, *([TORCH] if choice.gloo else [])]:
        if method == TORCH:
            figures = torch_speed(choice.network, train, choice.batch, choice.steps, world)
        else:
            figures = speed(method, choice.network, train, choice.batch, choice.steps, world)
        if world.rank == 0:
            record("speed", f"{choice.link}, {choice.network}, batch {choice.batch}", method, 0, figures)
    world.barrier()
    if choice.gloo:
        os._exit(0)  # gloo's threads wait for messages of groups that are still there
    world.close()
    leave_exit_code(0)


if __name__ == "__main__":
    main()
