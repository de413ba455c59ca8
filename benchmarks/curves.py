"""Learning curves of jobs beside each other: scores against steps and against seconds.

    [mpirun -n N] python benchmarks/curves.py run FILE.jsonl LABEL JOB.toml [--set KEY=VALUE] [--grid KEY=V1,V2,...]
    python benchmarks/curves.py table FILE.jsonl SCORE --steps N --goal-of LABEL ... [--higher] [--picture FILE.png]

``run`` trains a job on one thread a rank, evaluates every ``run.evaluate_every`` steps off the clock, and adds a line
to the file: what was set, the curve, and rank 0's seconds by the clock and of its CPU (what others do to the machine
hardly shows in those). Evaluations are of the test samples. ``table`` prints for every label the settings that were
run and, of the best, the mean over seeds, where it reaches the best final score of the labels named first, and how
long that took.
"""

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcopt.comm.world import World

Curve = list[dict[str, float]]


def run(file: Path, label: str, job_file: Path, settings: list[str], grid: list[str]) -> None:
    import torch

    from hpcopt.comm.world import connect

    torch.set_num_threads(1)
    world = connect("mpi")
    keys = [key for key, _ in (axis.split("=") for axis in grid)]
    for point in product(*(axis.split("=")[1].split(",") for axis in grid)):
        own = [*settings, *(f"{key}={value}" for key, value in zip(keys, point, strict=True))]
        line = train(world, job_file, own)
        if world.rank == 0:
            with file.open("a") as lines:
                lines.write(json.dumps({"label": label, **line}) + "\n")
            print(label, *own, {k: round(v, 4) for k, v in line["curve"][-1].items()}, flush=True)
    world.close()


def train(world: "World", job_file: Path, settings: list[str]) -> dict[str, Any]:
    """One run, as a line of the file."""
    import torch

    from hpcopt.build import build
    from hpcopt.job import read_job
    from hpcopt.trainer.loop import evaluate

    job = read_job(job_file, settings)
    built = build(job, world)
    workload, solver, steps = built.workload, built.solver, built.steps
    every = job.run.evaluate_every or workload.steps_per_epoch
    curve: Curve = [{"step": 0, "cpu_s": 0.0, "wall_s": 0.0, **evaluate(world, workload, solver.model)}]
    batches = workload.train_batches(solver.data_rank, solver.data_size, 0)
    cpu_s = wall_s = 0.0
    losses: list[float] = []
    for step in range(1, steps + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        losses.append(solver.step(next(batches)).loss)
        cpu_s, wall_s = cpu_s + time.process_time() - cpu, wall_s + time.perf_counter() - wall
        if step % every == 0 or step == steps:
            scores = evaluate(world, workload, solver.model)
            loss = float(world.all_reduce(torch.tensor(losses, dtype=torch.float64)).mean())
            curve.append({"step": step, "cpu_s": cpu_s, "wall_s": wall_s, "train_loss": loss, **scores})
            losses = []
    batches.close()  # type: ignore[attr-defined]
    return {
        "job": job_file.name, "ranks": world.size, "seed": job.run.seed, "steps": steps,
        "steps_per_epoch": workload.steps_per_epoch, "settings": settings, "curve": curve,
    }  # fmt: skip


def crossing(curve: Curve, score: str, goal: float, sign: int, clock: str) -> tuple[float, float]:
    """Steps and seconds at which a curve first has reached a score, interpolated; not-a-number if never."""
    for a, b in pairwise(curve):
        if sign * b[score] >= sign * goal:
            part = (goal - a[score]) / (b[score] - a[score])
            return tuple(a[k] + part * (b[k] - a[k]) for k in ("step", clock))  # type: ignore[return-value]
    return float("nan"), float("nan")


def mean_curve(runs: list[dict[str, Any]]) -> Curve:
    """The mean over runs that were evaluated at the same steps."""
    together = zip(*(r["curve"] for r in runs), strict=True)
    return [{k: statistics.fmean(p[k] for p in points) for k in points[0]} for points in together]


def grids(file: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By label and settings (length of the run and number of ranks among them), the runs of all seeds."""
    trials: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in file.read_text().splitlines():
        r = json.loads(line)
        own = " ".join(s.removeprefix("solver.") for s in r["settings"] if not s.startswith("run."))
        trials[r["label"]][f"{own or 'as in the file'}; {r['steps']} steps, {r['ranks']} ranks"].append(r)
    return trials


def final(runs: list[dict[str, Any]], score: str) -> float:
    return statistics.fmean(r["curve"][-1][score] for r in runs)


def table(file: Path, score: str, sign: int, steps: int, first: list[str], clock: str, picture: Path | None) -> None:
    best: dict[str, list[dict[str, Any]]] = {}
    print(f"| | settings | seeds | {score} at the end |\n|---|---|---|---|")
    for label, by_settings in grids(file).items():
        for settings, runs in sorted(by_settings.items(), key=lambda item: -sign * final(item[1], score)):
            print(f"| {label} | {settings} | {len(runs)} | {final(runs, score):.4f} |")
            if runs[0]["steps"] == steps and label not in best:
                best[label] = runs
    curves = {label: mean_curve(runs) for label, runs in best.items()}
    goal = sign * max(sign * curves[label][-1][score] for label in first)
    print(f"\nBest of each over {steps} steps. Goal: {score} = {goal:.4f}, the best end of {' and '.join(first)}.\n")
    print("| | seeds | " + " | ".join(f"step {p['step']:g}" for p in next(iter(curves.values()))[1:]), end="")
    print(f" | steps to the goal | {clock} to it | {clock} a step |")
    print("|---" * (len(next(iter(curves.values()))) + 4) + "|")
    for label, curve in curves.items():
        to = crossing(curve, score, goal, sign, clock)
        cells = [label, str(len(best[label])), *(f"{p[score]:.3f}" for p in curve[1:])]
        cells += [*("never" if math.isnan(x) else f"{x:.0f}" for x in to), f"{curve[-1][clock] / steps:.3f}"]
        print("| " + " | ".join(cells) + " |")
    if picture is not None:
        draw(curves, score, clock, picture)


def draw(curves: dict[str, Curve], score: str, clock: str, path: Path) -> None:
    from plotly import colors, subplots

    figure = subplots.make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for colour, (label, curve) in zip(colors.qualitative.D3, curves.items(), strict=False):
        for column, key in enumerate(("step", clock), 1):
            figure.add_scatter(
                x=[p[key] for p in curve], y=[p[score] for p in curve], row=1, col=column, mode="lines",
                line={"color": colour, "width": 2}, name=label, showlegend=column == 1,
            )  # fmt: skip
    for column, name in enumerate(("steps", clock), 1):
        figure.update_xaxes(title_text=name, col=column)
    figure.update_yaxes(title_text=score, col=1)
    figure.update_layout(
        template="plotly_white", font_size=15, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        margin={"l": 70, "r": 20, "t": 40, "b": 60},
    )  # fmt: skip
    figure.write_image(path, width=1100, height=400, scale=1.5)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("file", type=Path)
    one.add_argument("label")
    one.add_argument("job", type=Path)
    one.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    one.add_argument("--grid", action="append", default=[], metavar="SECTION.KEY=VALUE,VALUE,...")
    all_ = commands.add_parser("table")
    all_.add_argument("file", type=Path)
    all_.add_argument("score")
    all_.add_argument("--higher", action="store_true", help="a higher score is better")
    all_.add_argument("--steps", type=int, required=True, help="length of the runs that are compared")
    all_.add_argument("--goal-of", nargs="+", required=True, help="labels whose best end is the goal")
    all_.add_argument("--clock", choices=["cpu_s", "wall_s"], default="cpu_s")
    all_.add_argument("--picture", type=Path)
    o = p.parse_args()
    if o.command == "run":
        run(o.file, o.label, o.job, o.settings, o.grid)
    else:
        table(o.file, o.score, 1 if o.higher else -1, o.steps, o.goal_of, o.clock, o.picture)


if __name__ == "__main__":
    main()
