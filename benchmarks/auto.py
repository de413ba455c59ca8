"""Auto beside the exchanges that it chooses among: seconds a step of some networks on the links that there are.

    benchmarks/auto.sh 1300                         all forty set-ups: a night, by reckoning some eight hours
    benchmarks/auto.sh 30                           the same in some 20 minutes, without what takes longer
    mpirun -n 2 python benchmarks/auto.py --short   two networks on the links that there are
    python benchmarks/auto.py --table auto.jsonl    what all set-ups say, in Markdown

Five networks on two and four hosts at four rates of the development cluster are the forty set-ups. Rows take turns of
steps, each with its own copy of the network and of the data, so that all see the same machine; auto has measured again
before its first turn that counts. A time is the median over steps of the slowest rank's. The denominator is the best
dense ring, bfloat16 included. A set-up for which the seconds given are too few is recorded as not run: at 1 Mbit/s and
on four hosts a step of 0.7 million float32 values takes half a minute, and forty of them are the least.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, Bounded, Half
from hpcopt.exchange import AutoConfig, Exchange, ExchangeConfig, NativeConfig, RingConfig, TwoPhaseConfig
from hpcopt.models.resnet import ResNetConfig

STEPS, TURNS = 8, 20  # of a turn; at most
FEWEST = 3  # turns of one step, for a median
ALL_STEPS = 40  # of float32 that a set-up takes at least, about
DENSE = ("ring", "ring bf16")
WITHIN = 1.03  # of the best row


def rows() -> dict[str, ExchangeConfig]:
    """What is compared; auto may use what all of them do."""
    return {
        "ring": RingConfig(),
        "ring bf16": RingConfig(codec=Half()),
        "native": NativeConfig(),
        "two-phase qsgd": TwoPhaseConfig(codec=QSGD()),
        "bounded": RingConfig(codec=Bounded()),
        "auto": AutoConfig(codec=QSGD(), bounded=Bounded(), measure_again=(1,)),
    }


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each with a batch of inputs for 10 classes."""
    torch.manual_seed(0)
    images = torch.randn(16, 1, 28, 28)
    wide = [nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    deep = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.ReLU())]
    words = nn.Sequential(nn.EmbeddingBag(20_000, 32), nn.Linear(32, 10))
    return {
        "resnet-8": (ResNetConfig(width=16).build((1, 28, 28), 10), images),
        "deep mlp": (nn.Sequential(nn.Flatten(), nn.Linear(784, 64), *deep, nn.Linear(64, 10)), images),
        "resnet-8, wide": (ResNetConfig(width=32).build((1, 28, 28), 10), images[:4]),
        "wide mlp": (nn.Sequential(*wide), images),
        "words": (words, torch.randint(20_000, (16, 50))),
    }


class Runner:
    """One row of one network on this rank."""

    def __init__(self, world: World, model: nn.Module, inputs: Tensor, config: ExchangeConfig) -> None:
        self._world, self._model, self._inputs = world, model, inputs
        self._exchange = Exchange(world, model, config, mean=True)
        self._labels = torch.arange(len(inputs)) % 10

    def step(self) -> float:
        """Seconds on the slowest rank."""
        self._world.barrier()
        start_s = time.perf_counter()
        self._exchange.zero()
        F.cross_entropy(self._model(self._inputs), self._labels).backward()  # type: ignore[no-untyped-call]
        self._exchange.finish()
        return float(self._world.all_reduce(torch.tensor([time.perf_counter() - start_s]), "max"))

    @property
    def settled(self) -> bool:
        """Whether auto has measured again; or there was nothing to measure."""
        choices = self._exchange.choices
        return choices is None or self._world.size == 1 or bool(choices.news)

    def chosen(self) -> str:
        """What auto has chosen."""
        return self._exchange.choices.lines()[0] if self._exchange.choices else ""


def measure(world: World, name: str, limit_s: float) -> dict[str, float] | None:
    """Median seconds a step of each row; None if the seconds given are too few for that."""
    runners: dict[str, Runner] = {}
    spent_s = 0.0
    for row, config in rows().items():
        model, inputs = networks()[name]
        runners[row] = Runner(world, model, inputs, config)
        for _ in range(2):
            spent_s += (step_s := runners[row].step())
            if row == "ring" and ALL_STEPS * step_s > limit_s:
                return None
    while not runners["auto"].settled:
        spent_s += runners["auto"].step()
    times: dict[str, list[float]] = {row: [] for row in runners}
    steps = max(1, min(STEPS, int((limit_s - spent_s) / (FEWEST * len(runners) * step_s)) - 1))
    for turn in range(TURNS):
        if turn >= FEWEST and spent_s > limit_s:
            break
        for row, runner in runners.items():
            taken = [runner.step() for _ in range(1 + steps)]
            times[row] += taken[1:]
            spent_s += sum(taken)
    if world.rank == 0:
        print(f"{name}: {runners['auto'].chosen()}", flush=True)
    return {row: statistics.median(taken) for row, taken in times.items()}


def table(records: list[dict[str, object]]) -> str:
    """A line for each set-up, and how often auto lost."""
    names = list(rows())
    heads = ["set-up", *names, "auto / best dense ring", "auto / best"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    ratios = []
    for record in records:
        setup = f"{record['network']}, {record['hosts']} hosts, {record['links']}"
        if record["seconds"] is None:
            lines.append(f"| {setup} | {' | '.join(['not run'] + [''] * (len(heads) - 2))} |")
            continue
        taken: dict[str, float] = record["seconds"]  # type: ignore[assignment]
        ratios.append((taken["auto"] / min(taken[row] for row in DENSE), taken["auto"] / min(taken.values())))
        cells = [*(f"{1e3 * taken[row]:.3g}" for row in names), *(f"{ratio:.2f}" for ratio in ratios[-1])]
        lines.append(f"| {setup} | {' | '.join(cells)} |")
    slower, close = sum(dense > 1 for dense, _ in ratios), sum(best <= WITHIN for _, best in ratios)
    verdict = (
        f"auto is slower than the best dense ring in {slower} of {len(ratios)}, within 3 % of the best in {close}."
    )
    return "\n".join([*lines, "", verdict])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="two networks")
    parser.add_argument("--seconds", type=float, default=30.0, help="for a set-up, about")
    parser.add_argument("--links", default="as they are", help="what the table calls the links")
    parser.add_argument("--out", type=Path, help="file to append records to")
    parser.add_argument("--table", type=Path, help="measure nothing, print the table of such a file")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    world = connect("mpi")
    chosen = list(networks())[:2] if options.short else list(networks())
    records: list[dict[str, object]] = []
    for name in chosen:
        seconds = measure(world, name, options.seconds)
        records.append({"network": name, "hosts": world.nodes, "links": options.links, "seconds": seconds})
        if world.rank == 0 and options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    if world.rank == 0:
        print(table(records))
    world.close()
    leave_exit_code(0)


if __name__ == "__main__":
    main()
