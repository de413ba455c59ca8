"""How soon optimizers, tuned alike, are at AdamW's last loss: this package's choice and public rivals on six tasks.

    python -m benchmarks.kaisa.which run autoencoder resnet [--within-s 480] [--arms ours muon]
    python -m benchmarks.kaisa.which clock autoencoder resnet [--narrow]
    python -m benchmarks.kaisa.which table

``run`` goes on where it was stopped; a run is a line of which.jsonl. For each optimizer:

1. Five learning rates, each twice the one before, for a quarter of the task's steps on seed 0, and one more for as long
   as the best lies at the grid's edge, seven at most. The lowest held-out loss chooses.
2. AdamW then runs all the steps on five seeds: the mean of its last losses is the goal. The others run an eighth, a
   quarter, half or all of the steps: the shortest whose end on seed 0 is at the goal; then the other seeds.

The rate rises over a twentieth of a run and falls linearly to 2 % by its end, but for Schedule-Free, which keeps it.
Time is steps to the goal times the CPU seconds of a step that ``clock`` takes with the optimizers in turns; with
``--narrow`` matrices are multiplied in bfloat16 by "ours" and by Muon. "ours" is ``method = "auto"`` with the settings
below; the others have those of their packages, and Muon this package's momentum as well.
"""

import argparse
import inspect
import json
import math
import re
import statistics
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial, wraps
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from scipy.stats import mannwhitneyu
from torch import nn

from benchmarks.kaisa.curves import crossing, final_loss, spread
from benchmarks.kaisa.tasks import ENDS
from benchmarks.kaisa.trial import CONSTANT, Arm, Training, in_turns
from hpcopt.optim import AdamWConfig, SgdConfig
from hpcopt.optim.any_torch import AnyTorchConfig
from hpcopt.optim.config import OptimizerConfig

RUNS, TIMES = Path(__file__).with_name("which.jsonl"), Path(__file__).with_name("which_times.json")
PAGE = Path(__file__).parents[2] / "docs/results/which_optimizer.md"
STEPS = {"autoencoder": 200, "resnet": 240, "unet": 200, "bert_mini": 120, "language_model": 800,
         "pieces": 800}  # fmt: skip
SEEDS, EVALUATIONS = range(5), 10
INNER, WHOLE = SgdConfig(lr=1, momentum=0.9), SgdConfig(lr=1, momentum=0)
ADAMW = AdamWConfig(lr=1, betas=(0.9, 0.99), weight_decay=0.0)
SHORT = {"momentum": 0.8}  # for short runs
MUON = Arm(WHOLE, {"method": "auto", "muon": SHORT, "skip": ["next_sentence"]})


def newton_muon(every: int, batch_every: int) -> Arm:
    """Of networks of convolutions."""
    often = {"factor_every": every, "inverse_every": every, "batch_every": batch_every}
    return Arm(WHOLE, {"method": "auto", "newton_muon": SHORT, **often})


OURS = {
    "autoencoder": Arm(INNER, {"method": "auto", "fisher": "sampled", "damping": 1.0, "kl_clip": 1.0,
                               "factor_every": 10, "inverse_every": 10}),
    "resnet": newton_muon(2, 8),
    "unet": newton_muon(5, 4),
    "bert_mini": MUON,
    "language_model": MUON,
    "pieces": MUON,
}  # fmt: skip
NARROW = {"inverse_dtype": "bfloat16"}
OURS_NARROW = {"autoencoder": Arm(WHOLE, {"method": "auto", "muon": SHORT, **NARROW})}  # where it is another method
KFAC = {  # of convolutions
    "resnet": Arm(INNER, {"fisher": "sampled", "damping": 0.03, "kl_clip": 0.01, "batch_every": 4,
                          "factor_every": 10, "inverse_every": 20, "factor_decay": 0.7}),
    "unet": Arm(AdamWConfig(lr=1), {"damping": 0.001, "kl_clip": 1.0, "factor_every": 5, "inverse_every": 20}),
}  # fmt: skip


def public(type_: str, ends: bool = True, **arguments: Any) -> Arm:
    """A package's own; ``ends``: of all weights, not of inner matrices alone."""
    return Arm(AnyTorchConfig(type=type_, lr=1, arguments={"weight_decay": 0.0, **arguments}), ends=ends)


class MuonConfig(OptimizerConfig):
    """pytorch-optimizer's, which takes convolutions. Its products stay in float32 unless they are said to be narrow:
    without instructions for bfloat16 a step of the autoencoder takes 18 s in it.
    """

    name: Literal["public muon"] = "public muon"
    lr: float = 1
    momentum: float = 0.95  # its default
    narrow: bool = False

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        from pytorch_optimizer import Muon
        from pytorch_optimizer.optimizer.muon import base

        iterate = inspect.unwrap(base.zero_power_via_newton_schulz_5)
        dtype = torch.bfloat16 if self.narrow else torch.float32
        base.zero_power_via_newton_schulz_5 = wraps(iterate)(partial(iterate, dtype=dtype))
        return Muon(
            [{"params": list(parameters), "use_muon": True}], lr=self.lr, momentum=self.momentum, weight_decay=0.0
        )


SHAMPOO = {"preconditioning_compute_steps": 10}  # the size of its steps is SGD's, or RMSProp's where SGD is slow
RIVALS = {
    "adamw": Arm(ADAMW),
    "sgd": Arm(SgdConfig(lr=1, momentum=0.9, nesterov=True)),
    "lamb": public("pytorch_optimizer:Lamb"),
    "schedule_free": Arm(AnyTorchConfig(type="schedulefree:AdamWScheduleFree", lr=1), schedule=CONSTANT),
    "muon": Arm(MuonConfig(), ends=False),
    "muon_9": Arm(MuonConfig(momentum=0.9), ends=False),  # this package's default
    "muon_8": Arm(MuonConfig(momentum=0.8), ends=False),  # of its choice here
    "soap": public("pytorch_optimizer:SOAP", ends=False, precondition_frequency=10),
    "shampoo": public("pytorch_optimizer:ScalableShampoo", ends=False, **SHAMPOO, graft_type=1),
}
SOAP_8 = public("pytorch_optimizer:SOAP", ends=False, precondition_frequency=2, betas=(0.8, 0.95))  # searched, too
OF_TOKENS = {"shampoo": public("pytorch_optimizer:ScalableShampoo", ends=False, **SHAMPOO, graft_type=3)}
MIDDLE: dict[str, float | dict[str, float]] = {  # of the five rates
    "ours": {"autoencoder": 3.2, "resnet": 0.06, "unet": 0.16, "bert_mini": 0.008, "language_model": 0.016},
    "ours_narrow": {"autoencoder": 0.04},
    "kfac": {"resnet": 0.2, "unet": 0.03},
    "adamw": {"autoencoder": 0.001, "resnet": 0.004, "unet": 0.03, "bert_mini": 0.002, "language_model": 0.004},
    "sgd": {"autoencoder": 0.0015, "resnet": 0.1, "unet": 0.1, "bert_mini": 0.1, "language_model": 0.1},
    "lamb": 0.01,
    "schedule_free": {"autoencoder": 0.002, "resnet": 0.008, "unet": 0.03, "bert_mini": 0.004, "language_model": 0.008},
    "muon": 0.02,
    "muon_9": 0.02,
    "muon_8": 0.02,
    "soap": 0.004,
    "soap_8": {"resnet": 0.016, "unet": 0.064},
    "shampoo": {"autoencoder": 0.0015, "resnet": 0.1, "unet": 0.1, "bert_mini": 0.001, "language_model": 0.001},
}

OWN = ("ours", "ours_narrow", "kfac")  # of this package
SOME = {"ours_narrow": OURS_NARROW, "kfac": KFAC, "soap_8": dict.fromkeys(("resnet", "unet"), SOAP_8)}  # of some tasks
ALL = (*OWN, *RIVALS, "soap_8")
IN_NARROW = ", bfloat16"  # of a task's turns
LIKE = {"pieces": "language_model"}  # whose rates a task begins with
Row = dict[str, Any]


def arm_of(name: str, task: str) -> Arm:
    own = {"ours": OURS, **SOME}.get(name)
    return own[task] if own is not None else {**RIVALS, **(OF_TOKENS if task in ENDS else {})}[name]


def narrowed(arm: Arm) -> Arm:
    """The same, with products in bfloat16 if it has any."""
    if arm.kaisa is not None:
        return replace(arm, kaisa={**arm.kaisa, **NARROW})
    muon = isinstance(arm.optimizer, MuonConfig)
    return replace(arm, optimizer=arm.optimizer.model_copy(update={"narrow": True})) if muon else arm


def are_there(task: str, names: Iterable[str]) -> list[str]:
    """Those that a task has."""
    return [name for name in names if task in SOME.get(name, [task])]


def run(task: str, name: str, lr: float, seed: int, steps: int, arm: Arm | None = None) -> Row:
    """A line of which.jsonl. A loss that is not finite, or three times the first one, ends the run."""
    training, curve, cpu_s = Training(task, arm or arm_of(name, task), lr, seed, steps), [], 0.0
    for step in range(steps + 1):
        if step * EVALUATIONS % steps < EVALUATIONS:
            curve.append({"step": step, "loss": training.held_out()})
            if not curve[-1]["loss"] <= 3 * curve[0]["loss"]:
                curve[-1]["loss"] = math.inf
                break
        if step < steps:
            before = time.thread_time()
            training.step()
            cpu_s += time.thread_time() - before
    return {
        "task": task, "optimizer": name, "lr": lr, "seed": seed, "steps": steps, "cpu_s": cpu_s / steps, "curve": curve
    }  # fmt: skip


class Bench:
    """The rows, and what is to be done next."""

    def __init__(self) -> None:
        self.rows: list[Row] = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []

    def of(self, task: str, name: str, **wanted: Any) -> list[Row]:
        wanted |= {"task": task, "optimizer": name}
        return [row for row in self.rows if all(row[key] == value for key, value in wanted.items())]

    def rate(self, task: str, name: str) -> float | None:
        """The one that the trials choose; None while there are trials to do."""
        return None if next(self.trials(task, name), None) else self._best(task, name)

    def _best(self, task: str, name: str) -> float:
        return float(min(self.of(task, name, seed=0, steps=STEPS[task] // 4), key=final_loss)["lr"])

    def trials(self, task: str, name: str) -> Iterator[tuple[float, int, int]]:
        """Rates to be tried, with seed and steps."""
        of_task = MIDDLE[name]
        middle = of_task if isinstance(of_task, float) else of_task[LIKE.get(task, task)]
        rates, steps = [middle * 2.0**k for k in range(-2, 3)], STEPS[task] // 4
        done = {row["lr"] for row in self.of(task, name, seed=0, steps=steps)}
        yield from ((lr, 0, steps) for lr in rates if lr not in done)
        if done >= set(rates) and len(done) < 7:
            best = self._best(task, name)
            beyond = {min(done): best / 2, max(done): best * 2}.get(best)
            if beyond is not None:
                yield beyond, 0, steps

    def goal(self, task: str) -> float | None:
        """The mean of AdamW's last losses over its seeds."""
        rate = self.rate(task, "adamw")
        runs = self.of(task, "adamw", lr=rate, steps=STEPS[task])
        return statistics.fmean(map(final_loss, runs)) if len(runs) == len(SEEDS) else None

    def length(self, task: str, name: str) -> int:
        """Steps of the runs by which an optimizer is judged: the shortest length that is at the goal on seed 0, or the
        first one that seed 0 has not run; all steps if it is never there, and of AdamW.
        """
        rate, goal, steps = self.rate(task, name), self.goal(task) or -math.inf, STEPS[task]

        def is_there(length: int) -> bool | None:
            first = self.of(task, name, lr=rate, steps=length, seed=0)
            return final_loss(first[0]) <= goal if first else None

        if name == "adamw":
            return steps
        if is_there(steps // 4):
            return steps // 8 if is_there(steps // 8) is not False else steps // 4
        return next((length for length in (steps // 4, steps // 2) if is_there(length) is not False), steps)

    def chosen(self, task: str, name: str) -> list[Row]:
        """The runs by which an optimizer is judged."""
        runs = self.of(task, name, lr=self.rate(task, name), steps=self.length(task, name))
        return sorted(runs, key=lambda row: row["seed"])

    def runs(self, task: str, name: str, seeds: range) -> Iterator[tuple[float, int, int]]:
        """Judged runs that are missing, the first seed's alone until it has said how long they are."""
        rate = self.rate(task, name)
        if rate is None or (self.goal(task) is None and name != "adamw"):
            return
        done = {row["seed"] for row in self.chosen(task, name)}
        missing = [seed for seed in seeds if seed not in done]
        yield from ((rate, seed, self.length(task, name)) for seed in ([0] if 0 in missing else missing))

    def first(self, task: str, names: list[str]) -> Iterator[tuple[str, float, int, int]]:
        """AdamW's runs, then everybody's trials and first seed; what is due now."""
        for name in are_there(task, dict.fromkeys(["adamw", *names])):
            seeds = SEEDS if name == "adamw" else range(1)
            yield from ((name, *point) for point in (*self.trials(task, name), *self.runs(task, name, seeds)))

    def winners(self, task: str, names: list[str]) -> Iterator[tuple[str, float, int, int]]:
        """The other seeds of this package's choice and of the rival that is first at the goal."""
        rivals = [name for name in names if name not in OWN and name != "adamw" and self.chosen(task, name)]
        best = min(rivals, key=lambda name: self.seconds(task, self.chosen(task, name)[0]), default=None)
        for name in [n for n in ("ours", best) if n in names]:
            yield from ((name, *point) for point in self.runs(task, name, SEEDS))

    def seconds(self, task: str, row: Row) -> float:
        """CPU seconds of a run to the goal, as it took them itself."""
        return crossing(row, self.goal(task) or -math.inf) * float(row["cpu_s"])

    def record(self, row: Row) -> None:
        self.rows.append(row)
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        told = {key: value for key, value in row.items() if key != "curve"}
        print(told, f"{final_loss(row):.4f}", flush=True)


def clock(task: str, bench: Bench, arms: list[str], narrow: bool) -> dict[str, list[float]]:
    """CPU seconds of a step of each, in turns."""
    rates = {name: bench.rate(task, name) for name in are_there(task, arms)}
    timed = {name: arm_of(name, task) for name in rates if rates[name] is not None}
    timed = {name: narrowed(arm) if narrow else arm for name, arm in timed.items()}
    found = in_turns({n: Training(task, arm, (rates[n] or 0) / 10, 0, 10_000) for n, arm in timed.items()})
    print(task, {name: round(statistics.median(s), 4) for name, s in found.items()}, flush=True)
    return found


TITLES = {
    "autoencoder": "Autoencoder",
    "resnet": "ResNet-8",
    "unet": "U-Net",
    "bert_mini": "BERT-mini",
    "language_model": "Language model of bytes",
    "pieces": "Language model of pieces of words",
}
NAMES = {
    "ours": "this package's choice",
    "ours_narrow": "this package's choice in bfloat16",
    "kfac": "this package's K-FAC",
    "adamw": "AdamW",
    "sgd": "SGD, Nesterov",
    "lamb": "LAMB",
    "schedule_free": "Schedule-Free AdamW",
    "muon": "Muon",
    "muon_9": "Muon, momentum 0.9",
    "muon_8": "Muon, momentum 0.8",
    "soap": "SOAP",
    "soap_8": "SOAP, beta1 0.8, bases every 2",
    "shampoo": "Shampoo",
}


@dataclass(frozen=True)
class Judged:
    """An optimizer on a task: its judged runs, their steps to the goal (infinite where one is never there), CPU seconds
    of a step, and seconds to the goal over AdamW's.
    """

    rows: list[Row]
    steps: list[float]
    step_s: float
    ratios: list[float]


def judged(bench: Bench, task: str, times: dict[str, list[float]]) -> dict[str, Judged]:
    """All optimizers of a task that have runs."""
    goal, found, adamw_s = bench.goal(task), {}, 0.0
    assert goal is not None
    for name in are_there(task, ("adamw", *ALL)):
        if rows := bench.chosen(task, name):
            steps = [float(STEPS[task])] if name == "adamw" else [crossing(row, goal) for row in rows]
            step_s = statistics.median(times.get(name) or [float(row["cpu_s"]) for row in rows])
            adamw_s = adamw_s or steps[0] * step_s
            found[name] = Judged(rows, steps, step_s, [n * step_s / adamw_s for n in steps])
    return found


def table(task: str, goal: float, found: dict[str, Judged]) -> str:
    """A task's, the soonest at the goal first."""
    heads = "optimizer | rate | seeds | steps | held-out loss | steps to the goal | s a step | time, of AdamW's | p"
    lines = [f"### {TITLES[task]}", "", f"The goal is {goal:.4g}, after {STEPS[task]} steps of AdamW.", ""]
    lines += [f"| {heads} |", "|---" * 9 + "|"]
    for name, its in sorted(found.items(), key=lambda item: statistics.median(item[1].ratios)):
        there = [n for n in its.steps if n < math.inf]
        seldom = f", {len(there)} of {len(its.steps)}" if len(there) < len(its.steps) else ""
        cells = [NAMES[name], f"{its.rows[0]['lr']:g}", str(len(its.rows)), str(its.rows[0]["steps"])]
        cells.append(spread([final_loss(row) for row in its.rows]))
        cells.append(spread(there, ".3g") + seldom if there else "never")
        cells.append(f"{its.step_s:.3f}")
        cells.append(spread([r for r in its.ratios if r < math.inf], ".2f") if there else "never")
        ours = found["ours"].ratios
        tested = name not in ("ours", "adamw") and min(len(its.ratios), len(ours)) > 2
        cells.append(f"{mannwhitneyu(ours, its.ratios, method='exact').pvalue:.3f}" if tested else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means(found: dict[str, dict[str, Judged]], narrow: bool) -> str:
    """This package's choice over AdamW and over the best rival, by task and in the geometric mean."""
    ours, best = [], []
    for of_task in found.values():
        medians = {name: statistics.median(its.ratios) for name, its in of_task.items()}
        ours.append(medians["ours_narrow" if narrow and "ours_narrow" in medians else "ours"])
        best.append(ours[-1] / min(median for name, median in medians.items() if name not in OWN))
    told = "; ".join(f"{TITLES[task]} {a:.2f} and {b:.2f}" for task, a, b in zip(found, ours, best, strict=True))
    whole = [statistics.geometric_mean(values) for values in (ours, best)]
    return f"{told}. Geometric means: {whole[0]:.2f} and {whole[1]:.2f}."


def report(bench: Bench) -> str:
    """All tables, and the means over tasks."""
    times = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    goals = {task: goal for task in STEPS if bench.chosen(task, "ours") and (goal := bench.goal(task)) is not None}
    found = {task: judged(bench, task, times.get(task, {})) for task in goals}
    narrow = {task: judged(bench, task, {**times.get(task, {}), **times.get(task + IN_NARROW, {})}) for task in goals}
    texts = [
        f"Of AdamW's time and of the best rival's, this package's choice takes: {means(found, False)}",
        f"The same with products in bfloat16, where this package or Muon has any: {means(narrow, True)}",
    ]
    texts = [textwrap.fill(text, 100, break_on_hyphens=False) for text in texts]
    return "\n\n".join([*texts, *(table(task, goals[task], of_task) for task, of_task in found.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one, timed = commands.add_parser("run"), commands.add_parser("clock")
    for command in (one, timed):
        command.add_argument("tasks", choices=list(STEPS), nargs="+")
        command.add_argument("--arms", nargs="+", choices=ALL, default=ALL)
    commands.add_parser("table")
    timed.add_argument("--narrow", action="store_true", help="products in bfloat16, where there are any")
    one.add_argument("--within-s", type=float, default=math.inf, help="wall seconds within which runs begin")
    a = parser.parse_args()
    torch.set_num_threads(1)
    bench, start_s = Bench(), time.monotonic()
    if a.command == "table":
        page = PAGE.read_text()
        begin, end = "<!-- begin which: benchmarks/kaisa/which.py -->", "<!-- end which -->"
        text = f"{begin}\n{report(bench)}\n{end}"
        PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: text, page, flags=re.DOTALL))
        return
    if a.command == "clock":
        times = json.loads(TIMES.read_text()) if TIMES.exists() else {}
        for task in a.tasks:
            key = task + (IN_NARROW if a.narrow else "")
            times[key] = {**times.get(key, {}), **clock(task, bench, a.arms, a.narrow)}
            TIMES.write_text(json.dumps(times, indent=1) + "\n")
        return
    for stage, task in product((bench.first, bench.winners), a.tasks):
        while time.monotonic() - start_s < a.within_s and (point := next(stage(task, a.arms), None)) is not None:
            bench.record(run(task, *point))


if __name__ == "__main__":
    main()
