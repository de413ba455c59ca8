"""kfac-pytorch, which has KAISA's own code, with its damping tuned, and this package on the way to its last loss.

    PYTHONPATH=KFAC python -m benchmarks.kaisa.peer resnet language_model [--within-s 480]
    PYTHONPATH=KFAC python -m benchmarks.kaisa.peer clock resnet language_model

KFAC is the folder of its package. A run is a line of peer.jsonl, and none is done twice. Its factors are of gradients
of a mean over N terms, so its damping is this package's over N^2: four dampings, with three clips each, run a quarter
of the steps on seed 0, then the best pair at half and at twice the rate; the best of these runs all steps with three
seeds. This package's K-FAC and its ``method = "auto"`` run a quarter and half of the steps with as many: where their
curves are at the mean of the other's last losses is what is printed. kfac-pytorch takes linear maps and convolutions;
of the language model that is all but attention's projections and embeddings.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch

from benchmarks.kaisa.curves import crossing, final_loss
from benchmarks.kaisa.trial import ARMS, Arm, Training, in_turns
from benchmarks.kaisa.which import INNER, KFAC, OURS, Row, run

RUNS = Path(__file__).with_name("peer.jsonl")
STEPS, SEEDS = {"resnet": 240, "language_model": 400}, range(3)
EVERY = {"resnet": (10, 20), "language_model": (5, 10)}  # steps between factors, and between inverses, of both
RATES = {"resnet": 0.2, "language_model": 0.1}
DAMPINGS, CLIPS = (1e-8, 1e-6, 1e-4, 1e-2), (1e-3, 1e-1, 1e1)
OWN = {
    "resnet": {"hpcopt, K-FAC": (KFAC["resnet"], 0.8), "hpcopt, auto": (OURS["resnet"], 0.06)},
    "language_model": {"hpcopt, K-FAC": (ARMS["kfac"], 0.1), "hpcopt, auto": (OURS["language_model"], 0.016)},
}  # with their learning rates


def peer(task: str, damping: float, clip: float) -> Arm:
    """kfac-pytorch around SGD with momentum."""

    def begin(t: Training) -> None:
        from kfac.preconditioner import KFACPreconditioner

        factors, inverses = EVERY[task]
        t.state["peer"] = KFACPreconditioner(
            t.model, factor_update_steps=factors, inv_update_steps=inverses, damping=damping,
            kl_clip=clip, lr=lambda _: t.lr * t.part, skip_layers=["self_attn"],
        )  # fmt: skip

    return Arm(INNER, begin=begin, after=lambda t: t.state["peer"].step())


def points(task: str, rows: list[Row]) -> Iterator[tuple[str, float, int, int]]:
    """Names, rates, seeds and steps of what is to be run next."""
    steps, rate = STEPS[task], RATES[task]

    def done(name: str, lr: float, seed: int, length: int) -> Row | None:
        wanted = (task, name, lr, seed, length)
        return next((r for r in rows if (r["task"], r["optimizer"], r["lr"], r["seed"], r["steps"]) == wanted), None)

    def best(tried: list[tuple[str, float]]) -> tuple[str, float]:
        found = {pair: done(*pair, 0, steps // 4) for pair in tried}
        return min(tried, key=lambda pair: final_loss(row) if (row := found[pair]) else math.inf)

    tried = [(f"kfac-pytorch {damping:g} {clip:g}", rate) for damping, clip in product(DAMPINGS, CLIPS)]
    yield from ((*pair, 0, steps // 4) for pair in tried)
    name, _ = best(tried)
    rates = [(name, rate / 2), (name, rate), (name, rate * 2)]
    yield from ((*pair, 0, steps // 4) for pair in rates)
    yield from ((*best(rates), seed, steps) for seed in SEEDS)
    for own, (_, lr) in OWN[task].items():
        yield from ((own, lr, seed, length) for length in (steps // 4, steps // 2) for seed in SEEDS)


def arm(task: str, name: str) -> Arm:
    return OWN[task][name][0] if name in OWN[task] else peer(task, *map(float, name.split()[1:]))


def missing(task: str, rows: list[Row]) -> tuple[str, float, int, int] | None:
    have = {(r["optimizer"], r["lr"], r["seed"], r["steps"]) for r in rows if r["task"] == task}
    return next((point for point in points(task, rows) if point not in have), None)


def clock(task: str, theirs: Row) -> dict[str, float]:
    """CPU seconds of a step of each, in turns."""
    rates = {theirs["optimizer"]: theirs["lr"], **{name: lr for name, (_, lr) in OWN[task].items()}}
    found = in_turns({name: Training(task, arm(task, name), lr / 10, 0, 10_000) for name, lr in rates.items()})
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def tell(task: str, rows: list[Row]) -> None:
    """What was found, with seconds in turns."""
    whole = [r for r in rows if r["task"] == task and r["steps"] == STEPS[task]]
    goal, theirs = statistics.fmean(map(final_loss, whole)), whole[0]["optimizer"]
    step_s = clock(task, whole[0])
    print(f"{task}: {theirs}, rate {whole[0]['lr']:g}: {goal:.4f} after {STEPS[task]} steps of {step_s[theirs]:.3f} s")
    for name, length in product(OWN[task], (STEPS[task] // 4, STEPS[task] // 2)):
        ours = [r for r in rows if r["task"] == task and r["optimizer"] == name and r["steps"] == length]
        there = [crossing(row, goal) for row in ours]
        ratio = [n * step_s[name] / (STEPS[task] * step_s[theirs]) for n in there]
        print(f"  {name}, {length} steps of {step_s[name]:.3f} s: ends at {[round(final_loss(r), 4) for r in ours]}")
        print(f"    there after {[round(n, 1) for n in there]} steps, {[round(r, 3) for r in ratio]} of its time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=["clock", *STEPS])
    parser.add_argument("--within-s", type=float, default=math.inf, help="wall seconds within which runs begin")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    start_s = time.monotonic()
    for task in (t for t in a.tasks if t != "clock"):
        while "clock" not in a.tasks and time.monotonic() - start_s < a.within_s and (point := missing(task, rows)):
            rows.append(run(task, *point, arm(task, point[0])))
            with RUNS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(point, f"{final_loss(rows[-1]):.4f}", flush=True)
        if missing(task, rows) is None:
            tell(task, rows)


if __name__ == "__main__":
    main()
