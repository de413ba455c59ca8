"""Auto beside the exchanges that it chooses among: seconds a step of some networks on the links that there are.

    benchmarks/auto.sh 20                           all forty set-ups, on the development cluster: about an hour
    mpirun -n 2 python benchmarks/auto.py --short   two networks on the links that there are
    python benchmarks/auto.py --table auto.jsonl    what all set-ups say, in Markdown

Five networks on two and four hosts at four rates are the forty set-ups. Each row has its own copy of the network and of
the data, and auto has measured again before its first turn that counts. In a turn every row takes one to four steps, as
many as go into the time of the slowest row's, in an order that is drawn anew. On a slow link six turns are enough, for
the wire decides; on a fast one there are some sixty. What a row takes in a turn is the median over its steps of the
slowest rank's seconds.

Rows are compared within turns, and a ratio is the median over the turns. Its interval of 95 % is that of the ranks of
ordered ratios, which asks nothing of how they are distributed, but that they be independent. Turns of rows that live on
are not: two rows of the same code differ by some percent as long as both live, by where their memory lies and how their
threads are scheduled. So where steps are short all rows are built six times, auto measures and chooses in each, and
the interval is that of the builds' medians. Auto is slower than the best dense ring, bfloat16 included, where the whole
interval lies above 1. Where it takes that ring, both run the same code, and chance decides whose median is larger: the
program says both counts.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.comm.launch import leave_exit_code
from hpcopt.comm.world import World, connect
from hpcopt.compress import QSGD, Bounded, Half
from hpcopt.exchange import AutoConfig, Exchange, ExchangeConfig, NativeConfig, RingConfig, TwoPhaseConfig
from hpcopt.models.resnet import ResNetConfig

STEPS = 4  # of a row in a turn, at most
TURNS = 60  # wished for, where a step is short
FEWEST = 6  # turns, of which the whole range is an interval of 97 %
BUILDS = 6  # of all rows, where building them takes less than their turns
DENSE = ("ring", "ring bf16")
WITHIN = 1.03  # of the best other row


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


class Lines(nn.Module):
    """A transformer that reads a picture line by line: (n, 1, 28, 28) to (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(28, 48), nn.Linear(48, 10)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True) for _ in range(2))

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.first(pictures.flatten(0, 1))
        for layer in self.layers:
            x = layer(x)
        return self.last(x.mean(1))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each with a batch of inputs for 10 classes."""
    torch.manual_seed(0)
    images = torch.randn(16, 1, 28, 28)
    deep = [layer for _ in range(30) for layer in (nn.Linear(32, 32), nn.ReLU())]
    wide = [nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)]
    words = nn.Sequential(nn.EmbeddingBag(4_000, 16), nn.Linear(16, 10))
    return {
        "resnet-8": (ResNetConfig(width=8).build((1, 28, 28), 10), images),
        "deep mlp": (nn.Sequential(nn.Flatten(), nn.Linear(784, 32), *deep, nn.Linear(32, 10)), images),
        "wide mlp": (nn.Sequential(*wide), images),
        "transformer": (Lines(), images),
        "words": (words, torch.randint(4_000, (16, 50))),
    }


class Runner:
    """One row of one network on this rank."""

    def __init__(self, world: World, model: nn.Module, inputs: Tensor, config: ExchangeConfig) -> None:
        self._world, self._model, self._inputs = world, model, inputs
        self._exchange = Exchange(world, model, config, mean=True, broadcast=False)
        self._labels = torch.arange(len(inputs)) % 10

    def step(self) -> float:
        """Seconds on the slowest rank."""
        self._world.barrier()
        start_s = time.perf_counter()
        self._exchange.zero()
        F.cross_entropy(self._model(self._inputs), self._labels).backward()  # type: ignore[no-untyped-call]
        self._exchange.finish()
        return float(self._world.all_reduce(torch.tensor([time.perf_counter() - start_s]), "max"))

    def settle(self) -> None:
        """Take the first step; auto those until it has measured again."""
        self.step()
        choices = self._exchange.choices
        while choices and self._world.size > 1 and not choices.news:
            self.step()
            choices = self._exchange.choices

    def close(self) -> None:
        """End the exchange's thread."""
        self._exchange.remove()

    def chosen(self) -> str:
        """What auto has chosen."""
        return (
            ", ".join(choice.algorithm for choice in self._exchange.choices.buckets) if self._exchange.choices else ""
        )


def measure(world: World, name: str, limit_s: float) -> dict[str, Any]:
    """Seconds of each row, build by build and turn by turn, and what auto has chosen in each build."""
    builds, chosen, order = [], [], random.Random(0)
    count = 1
    while len(builds) < count:
        start_s = time.perf_counter()
        runners = built(world, name)
        lasted_s = torch.tensor([time.perf_counter() - start_s])
        if not builds and float(world.all_reduce(lasted_s, "max")) < limit_s:
            count = BUILDS
        builds.append(taken_turns(runners, limit_s / count, order, FEWEST if count == 1 else 1))
        chosen.append(runners["auto"].chosen())
        for runner in runners.values():
            runner.close()
    seconds = {row: [[float(f"{turn[row]:.4g}") for turn in turns] for turns in builds] for row in rows()}
    parameters = sum(p.numel() for p in networks()[name][0].parameters())
    return {"parameters": parameters, "chosen": chosen, "seconds": seconds}


def built(world: World, name: str) -> dict[str, Runner]:
    """All rows of a network, ready for turns."""
    runners = {}
    for row, config in rows().items():
        model, inputs = networks()[name]
        runners[row] = Runner(world, model, inputs, config)
        runners[row].settle()
    return runners


def taken_turns(
    runners: dict[str, Runner], limit_s: float, order: random.Random, fewest: int
) -> list[dict[str, float]]:
    """Seconds of each row in turns that last about so long together."""
    once_s = {row: runner.step() for row, runner in runners.items()}
    longest_s = max(*once_s.values(), limit_s / (TURNS * len(runners)))
    steps = {row: max(1, min(STEPS, int(longest_s / step_s))) for row, step_s in once_s.items()}
    turns: list[dict[str, float]] = []
    spent_s = 0.0
    while len(turns) < fewest or spent_s < limit_s:
        turn = {}
        for row in order.sample(list(runners), len(runners)):
            taken = [runners[row].step() for _ in range(steps[row])]
            turn[row] = statistics.median(taken)
            spent_s += sum(taken)
        turns.append(turn)
    return turns


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the ends of its interval of 95 %: the k-th smallest and k-th largest, of which one lies on the
    wrong side of the true median with probability 2 P(Binomial(n, 1/2) < k).

    >>> interval([6.0, 1.0, 2.0, 3.0, 5.0, 4.0])
    (3.5, 1.0, 6.0)
    """
    ordered, n, k, beyond = sorted(values), len(values), 0, 1.0
    while 2 * (beyond + math.comb(n, k + 1)) <= 0.05 * 2.0**n:
        k += 1
        beyond += math.comb(n, k)
    return statistics.median(values), ordered[k], ordered[-1 - k]


def against(seconds: dict[str, list[list[float]]], others: list[str]) -> tuple[str, tuple[float, float, float]]:
    """The row with the smallest median among some, and auto's ratio to it: over builds, or over the turns of one."""
    best = min(others, key=lambda row: middle(seconds[row]))
    ratios = [
        [auto / other for auto, other in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(seconds["auto"], seconds[best], strict=True)
    ]
    return best, interval(ratios[0] if len(ratios) == 1 else [statistics.median(turns) for turns in ratios])


def middle(builds: list[list[float]]) -> float:
    """The median of a row's builds."""
    return statistics.median(statistics.median(turns) for turns in builds)


def table(records: list[dict[str, Any]]) -> str:
    """A line for each set-up, and how often auto lost."""
    names = list(rows())
    heads = ["set-up", "builds, turns", *names, "auto takes", "auto / best dense ring", "auto / best other row"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    dense, best = [], []
    for record in records:
        seconds: dict[str, list[list[float]]] = record["seconds"]
        cells = [f"{record['network']}, {record['hosts']} hosts, {record['links']}"]
        cells.append(f"{len(seconds['auto'])}, {sum(map(len, seconds['auto']))}")
        cells += [f"{1e3 * middle(seconds[row]):.3g}" for row in names]
        cells.append(", ".join(f"{way} {n}" for way, n in Counter(record["chosen"]).most_common()))
        for found, others in ((dense, list(DENSE)), (best, [row for row in names if row != "auto"])):
            row, (ratio, low, high) = against(seconds, others)
            found.append((ratio, low))
            cells.append(f"{ratio:.3f} ({low:.3f} to {high:.3f}) {row}")
        lines.append(f"| {' | '.join(cells)} |")
    slower = [sum(ratio > 1 for ratio, _ in dense), sum(low > 1 for _, low in dense)]
    within = [sum(ratio <= WITHIN for ratio, _ in best), sum(low <= WITHIN for _, low in best)]
    verdict = (
        f"Auto is slower than the best dense ring in {slower[0]} of {len(dense)} by the median, in {slower[1]} by the "
        f"interval. It is within 3 % of the best other row in {within[0]} by the median; in {within[1]} the interval "
        "does not say otherwise."
    )
    return "\n".join([*lines, "", verdict])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="two networks")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the turns of a set-up, about")
    parser.add_argument("--links", default="as they are", help="what the table calls the links")
    parser.add_argument("--out", type=Path, help="file to append records to")
    parser.add_argument("--table", type=Path, help="measure nothing, print the table of such a file")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    world = connect("mpi")
    records: list[dict[str, Any]] = []
    for name in list(networks())[: 2 if options.short else None]:
        measured = measure(world, name, options.seconds)
        records.append({"network": name, "hosts": world.nodes, "links": options.links, **measured})
        if world.rank == 0 and options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    if world.rank == 0:
        print(table(records))
    world.close()
    leave_exit_code(0)


if __name__ == "__main__":
    main()
