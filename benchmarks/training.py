"""Seconds to 0.90 test accuracy with every exchange: a ResNet on Fashion-MNIST, four ranks on links of a known rate.

    sbatch --exclusive benchmarks/training.sh train --link 100mbit ring     train to the target, on four nodes
    mpirun -n 4 python benchmarks/training.py train ring               the same, to count steps, where no link is slow
    mpirun -n 4 python benchmarks/training.py attacked --flips --learned             a vote with a liar among the ranks
    sbatch --exclusive benchmarks/training.sh cost --link 1gbit        what a step takes and sends, overlapped and not
    ... cost --link 1mbit --rounds 3 --steps 2 --no-overlap            a short form, for links on which steps take long
    python benchmarks/training.py table                                all of it, into docs/results/training.md

How many steps a row needs is the same on any network: a run's numbers do not depend on when messages arrive. What a
step costs is the median over turns of eight steps (of a round, where ranks meet more seldom), with bytes as the network
interfaces count them. Every record is a
line of training.jsonl; of two with the same meaning the later one counts.
"""

import argparse
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import torch

from hpcopt import train
from hpcopt.build import build
from hpcopt.comm.launch import launch_from, leave_exit_code
from hpcopt.comm.world import World, connect
from hpcopt.job import read_job
from hpcopt.report import pictures
from hpcopt.report.figure import Figure

JOB = Path("jobs/fashion_resnet.toml")
RECORDS = Path(__file__).with_suffix(".jsonl")
PAGE, PICTURE = Path("docs/results/training.md"), "training"
LINKS = {"1mbit": "1 Mbit/s", "10mbit": "10 Mbit/s", "100mbit": "100 Mbit/s", "1gbit": "1 Gbit/s"}
PICTURED = "100mbit"
TARGET = 0.90
COMMON = ["run.epochs=4", "solver.optimizer.lr=0.1", "exchange.bucket_mb=0.1"]
TO_THE_TARGET = [
    "run.stop_at.metric=test_accuracy",
    f"run.stop_at.value={TARGET}",
    "run.evaluate_every=250",
    "run.checkpoint_every=1000000",
]
SIGNUM = 'solver.optimizer={name="signum", lr=2e-3, momentum=0.9, weight_decay=5e-4}'
NO_MOMENTUM = ["solver.optimizer.lr=0.5", "solver.optimizer.momentum=0"]
VOTE = "vote, Signum"
LIAR = 'exchange.adversary={ranks=[3], kind="sign_flip", scale=4.0}'
LEARNED = 'exchange.weights="learned"'
TO_THE_END = "run.stop_at.value=0.99"
ROWS = {
    "ring": ['exchange.name="ring"'],
    "ring, bf16": ['exchange.name="ring"', 'exchange.codec={name="half"}'],
    "two-phase, QSGD 4 bits": ['exchange.name="two_phase"', 'exchange.codec={name="qsgd", bits=4}'],
    "two-phase, top 1 %": [*NO_MOMENTUM, 'exchange.name="two_phase"', 'exchange.codec={name="topk", fraction=0.01}'],
    "PowerSGD, rank 4": ['exchange.name="ring"', 'exchange.codec={name="powersgd", rank=4}'],
    VOTE: [SIGNUM, 'exchange.name="vote"'],
    "local": [
        'solver.name="local"',
        "solver.every=32",
        'solver.outer={name="sgd", lr=1.0, momentum=0.0}',
        'exchange.name="two_phase"',
        'exchange.codec={name="chunked_topk", k=256}',
        "exchange.bucket_mb=4.0",
    ],
    "LGC, ring": [*NO_MOMENTUM, 'exchange.name="lgc"', "exchange.fraction=0.01"],
    "leader": ['solver.name="leader"', "solver.every=16", "solver.pull=0.1", 'solver.form="step"'],
    "push-sum": ['solver.name="gossip"', 'solver.mixing="push_sum"', 'solver.graph="exponential"'],
}


DENSE = ("ring", "ring, bf16")
ROUNDS = {"local": 32, "leader": 16}  # steps of a turn, where they are not eight
LAST_PHASE = {"LGC, ring": ["exchange.dense_steps=0", "exchange.learning_steps=0"]}  # of which costs are to be told


def settings(row: str, overlap: bool) -> list[str]:
    """The row's changes to the job. Push-Sum does not wait where a message may be a step old."""
    if row == "push-sum":
        return [*COMMON[:-1], *ROWS[row], f"solver.tau={int(overlap)}"]  # its last setting is of an exchange
    if row == "leader":
        return [*COMMON[:-1], *ROWS[row]]
    return [*COMMON, *ROWS[row], f"exchange.overlap={str(overlap).lower()}"]


def record(kind: str, row: str, **measured: Any) -> None:
    with RECORDS.open("a") as file:
        file.write(json.dumps({"kind": kind, "row": row, **measured}) + "\n")


def train_to_target(row: str, overlap: bool, link: str, interface: str, more: list[str]) -> None:
    """Through the front door. Collective: over the ranks that the launcher started."""
    run_dir = Path("runs/training") / re.sub(r"\W+", "-", f"{row} {link} {overlap}")
    before = sent_by(interface)
    changes = [word for setting in (*settings(row, overlap), *TO_THE_TARGET, *more) for word in ("--set", setting)]
    exit_code = train.main([str(JOB), "--run-dir", str(run_dir), "--fresh", *changes])
    launch = launch_from()
    if launch.rank > 0 or exit_code:
        return
    with h5py.File(run_dir / "metrics.h5") as file:
        scores, steps = file["evaluations"], file["steps"]
        curve = list(zip(scores["step"][:].tolist(), scores["test_accuracy"][:].round(4).tolist(), strict=True))
        record(
            "train",
            row,
            overlap=overlap,
            link=link,
            ranks=launch.size,
            more=more,
            curve=curve,
            time_s=round(float(scores["time_s"][-1]), 1),
            steps_s=round(float(steps["step_s"][:].sum()), 1),
            interface_bytes=None if before is None else (sent_by(interface) or 0) - before,
            counted_bytes=int(steps["sent_bytes"][:, 0].sum()),
        )


def sent_by(interface: str) -> int | None:
    """Bytes that this host's network interface has sent, headers included; None where there is none of that name."""
    counts = dict(line.split(":") for line in Path("/proc/net/dev").read_text().splitlines()[2:])
    fields = {name.strip(): text.split() for name, text in counts.items()}.get(interface)
    return int(fields[8]) if fields else None


class Turn(NamedTuple):
    """Means over its steps, of seconds on the slowest rank, and of bytes over all ranks."""

    step_s: float
    cpu_s: float
    sent_bytes: float


class Contender:
    """A row's solver at work, with the reduction of the loss that the trainer does in each step."""

    def __init__(self, world: World, row: str, overlap: bool, options: argparse.Namespace) -> None:
        """Collective."""
        job = read_job(JOB, [*settings(row, overlap), *LAST_PHASE.get(row, []), *options.set])
        self._steps = ROUNDS.get(row, options.steps)
        built = build(job, world)
        self.row, self.overlap, self._world, self._interface = row, overlap, world, options.interface
        self._solver = built.solver
        self._batches = built.workload.train_batches(self._solver.data_rank, self._solver.data_size, 0)
        self.turns: list[Turn] = []

    def work(self) -> None:
        """Add a turn. Collective."""
        steps = self._steps
        self._world.barrier()
        start_s, start_cpu_s, start_bytes = time.perf_counter(), time.process_time(), sent_by(self._interface) or 0
        for _ in range(steps):
            loss = self._solver.step(next(self._batches)).loss
            if self._solver.lockstep:
                self._world.all_reduce(torch.tensor([loss, 0, 0, 0, 0], dtype=torch.float64))
        taken = [time.perf_counter() - start_s, time.process_time() - start_cpu_s]
        step_s, cpu_s = (self._world.all_reduce(torch.tensor(taken, dtype=torch.float64), "max") / steps).tolist()
        sent = torch.tensor([((sent_by(self._interface) or 0) - start_bytes) / steps])
        sent_bytes = float(self._world.all_reduce(sent)) / self._world.size
        self.turns.append(Turn(step_s, cpu_s, sent_bytes))

    def finish(self) -> None:
        """Take in what is still under way. Collective."""
        self._solver.gather()


def measure_costs(options: argparse.Namespace) -> None:
    """All rows take turns, so that all see the same machine; the first turn does not count."""
    link, ways = options.link, (False,) if options.no_overlap else (False, True)
    torch.set_num_threads(1)
    world = connect("mpi")
    contenders = [Contender(world, row, way, options) for row in options.rows for way in ways]
    for _ in range(1 + options.rounds):
        for contender in contenders:
            contender.work()
    for c in contenders:
        c.finish()
        step_s, cpu_s, sent_bytes = (statistics.median(column) for column in zip(*c.turns[1:], strict=True))
        if world.rank == 0:
            told = f"{1e3 * step_s:8.1f} ms {1e3 * cpu_s:8.1f} CPU ms {sent_bytes / 1e3:9.2f} KB"
            print(f"{link:8} {c.row:26} overlap {c.overlap!s:6} {told}")
            more = {"cpu_s": cpu_s, "sent_bytes": sent_bytes, "rounds": options.rounds}
            if not options.set:
                record("cost", c.row, overlap=c.overlap, link=link, step_s=step_s, **more)
    world.close()
    leave_exit_code(0)


def load() -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str, bool], dict[str, Any]]]:
    """The last training of each row, with nothing else changed, and the last costs by row, link and overlap."""
    records = load_records()
    others = ("adversary", "weights", "seed")
    plain = [r for r in records if r["kind"] == "train" and not any(word in str(r["more"]) for word in others)]
    trained = {r["row"]: r for r in plain}
    return trained, {(r["row"], r["link"], r["overlap"]): r for r in records if r["kind"] == "cost"}


def load_records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text().splitlines()]


def steps_to_target(trained: dict[str, Any]) -> int | None:
    return next((step for step, accuracy in trained["curve"] if accuracy >= TARGET), None)


def table() -> str:
    """In Markdown: what a step sends and takes, the seconds that the steps to the target take, and how often they go
    into those of the best dense ring.
    """
    trained, costs = load()
    links = [link for link in LINKS if any(link == measured for _, measured, _ in costs)]
    seconds = {link: seconds_to_target(trained, costs, link) for link in links}
    best = {
        link: min((min(seconds[link][row]) for row in DENSE if row in seconds[link]), default=0.0) for link in links
    }
    columns = [
        f"{LINKS[link]}, {column}"
        for link in links
        for column in ("ms a step", f"s to {TARGET:.2f}", "best dense / this")
    ]
    lines = [f"| | steps to {TARGET:.2f} | KB a step | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    for row in (row for row in ROWS if any(row == measured for measured, _, _ in costs)):
        steps = steps_to_target(trained[row]) if row in trained else None
        cells = [row, f"{steps:,}" if steps else "not counted"]
        if row in trained and not steps:
            last, highest = trained[row]["curve"][-1][0], max(accuracy for _, accuracy in trained[row]["curve"])
            cells[1] = f"not in {last:,}: {highest:.3f}"
        counted = next(costs[row, link, False] for link in (PICTURED, *links) if (row, link, False) in costs)
        sent_kb = counted["sent_bytes"] / 1e3
        cells.append(f"{sent_kb:.0f}" if sent_kb >= 1 else f"{sent_kb:.2f}")
        for link in links:
            both = [costs[row, link, way]["step_s"] for way in (False, True) if (row, link, way) in costs]
            taken = seconds[link].get(row, [])
            cells.append(" / ".join(f"{1e3 * step_s:.0f}" for step_s in both))
            cells.append(" / ".join(f"{run_s:.0f}" for run_s in taken))
            cells.append(f"{best[link] / min(taken):.2f}" if taken else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def seconds_to_target(
    trained: dict[str, dict[str, Any]], costs: dict[tuple[str, str, bool], dict[str, Any]], link: str
) -> dict[str, list[float]]:
    """By row, not overlapped and overlapped; Push-Sum's messages of the step before make another run, not counted."""
    found = {}
    for row in trained:
        steps, ways = steps_to_target(trained[row]), (False,) if row == "push-sum" else (False, True)
        if steps and (row, link, False) in costs:
            found[row] = [steps * costs[row, link, way]["step_s"] for way in ways if (row, link, way) in costs]
    return found


def attacked_settings(flips: bool, learned: bool, seed: int) -> list[str]:
    """Changes to the vote's row."""
    return [
        TO_THE_END,
        *([LIAR] if flips else []),
        *([LEARNED] if learned else []),
        *([f"run.seed={seed}"] * (seed > 0)),
    ]


def attacked_table() -> str:
    """In Markdown: accuracies at the end of whole runs, those of all seeds in one cell."""
    votes = [r for r in load_records() if r["kind"] == "train" and r["row"] == VOTE]
    ended = {frozenset(r["more"]): r["curve"][-1][1] for r in votes}
    lines = ["| | all ranks honest | one of four turns its signs round |", "|---|---|---|"]
    for label, learned in (("vote", False), ("vote, learned weights", True)):
        cells = []
        for flips in (False, True):
            wanted = [frozenset(attacked_settings(flips, learned, seed)) for seed in range(4)]
            cells.append(" / ".join(f"{ended[settings]:.3f}" for settings in wanted if settings in ended))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_page() -> None:
    """The tables between the page's marks, and the picture: accuracy against seconds on the slow links."""
    text = PAGE.read_text()
    for name, content in (("table", table()), ("attacked", attacked_table())):
        marks = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        text = re.sub(f"{marks[0]}.*?{marks[1]}", lambda _, c=content, m=marks: m[0] + c + m[1], text, flags=re.S)
    PAGE.write_text(text)
    trained, costs = load()
    link, name = PICTURED, LINKS[PICTURED]
    lines = []
    for row in (row for row in ROWS if row in trained and (row, link, True) in costs):
        ways = (False,) if row == "push-sum" else (False, True)
        step_s = min(costs[row, link, overlap]["step_s"] for overlap in ways)
        steps, accuracy = zip(*trained[row]["curve"], strict=True)
        lines.append({"type": "scatter", "name": row, "x": [step * step_s for step in steps], "y": accuracy})
    axes = {"xaxis": {"title": {"text": f"seconds on links of {name}"}}, "yaxis": {"title": {"text": "test accuracy"}}}
    axes["yaxis"]["range"] = [0.7, 0.92]
    figure = Figure(PICTURE, "Accuracy over time", "", lines, axes | {"height": 560}, {})
    pictures.write([figure], PAGE.parents[1] / "pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "cost", "attacked", "table"])
    parser.add_argument("rows", nargs="*", default=list(ROWS), help="cost: rows, by default all; train: one")
    parser.add_argument("--link", default="memory", help="rate of the links, as it is to stand in the table")
    parser.add_argument("--interface", default="e0", help="the nodes' network interface")
    parser.add_argument("--rounds", type=int, default=7, help="cost: turns")
    parser.add_argument(
        "--steps", type=int, default=8, help="cost: of a turn; where ranks meet more seldom, of a round"
    )
    parser.add_argument("--no-overlap", action="store_true", help="exchange after the backward pass only")
    parser.add_argument(
        "--set", action="append", default=[], help="train, cost: a further change; then no costs are recorded"
    )
    parser.add_argument("--flips", action="store_true", help="attacked: a rank turns its signs round")
    parser.add_argument("--learned", action="store_true", help="attacked: with learned weights")
    parser.add_argument("--seed", type=int, default=0, help="attacked: of the job")
    options = parser.parse_intermixed_args()
    if options.what == "cost":
        measure_costs(options)
    elif options.what == "attacked":
        changes = attacked_settings(options.flips, options.learned, options.seed)
        train_to_target(VOTE, False, options.link, options.interface, changes)
    elif options.what == "train":
        (row,) = options.rows
        train_to_target(row, not options.no_overlap, options.link, options.interface, options.set)
    else:
        write_page()


if __name__ == "__main__":
    main()
