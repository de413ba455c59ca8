"""What runs.jsonl holds, as tables in docs/results/kaisa.md and curves in docs/pictures/convergence.png.

    python benchmarks/kaisa/curves.py

Of each optimizer the settings with most seeds count, the lowest held-out loss deciding between equals. Losses at which
optimizers are compared are the first-order ones' own mean losses at their ends. Seconds are steps times what a step
takes (step_times.json, the median of its rounds).
"""

import json
import re
import statistics
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

RUNS = Path(__file__).with_name("runs.jsonl")
STEP_TIMES = Path(__file__).with_name("step_times.json")
DOCS = Path(__file__).parents[2] / "docs"
NAMES = {"sgd": "SGD, Nesterov", "adamw": "AdamW", "kaisa": "K-FAC", "muon": "Muon", "kfac-pytorch": "kfac-pytorch"}
COLOURS = {"sgd": "#e69f00", "adamw": "#0a84c6", "kaisa": "#009e73"}

Run = dict[str, Any]


def crossing(run: Run, loss: float) -> float:
    """Steps after which a run's curve first is at a loss, interpolated; infinite if it never is."""
    for a, b in pairwise(run["curve"]):
        if b["loss"] <= loss:
            part = max(0.0, (a["loss"] - loss) / (a["loss"] - b["loss"]))
            return float(a["step"] + part * (b["step"] - a["step"]))
    return float("inf")


def final_loss(run: Run) -> float:
    return float(run["curve"][-1]["loss"])


def spread(values: list[float], digits: str = ".4g") -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.fmean(values):{digits}}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2g}"


def one_a_seed(runs: list[Run]) -> list[Run]:
    """One run a seed: where there are several, that with the finest curve."""
    by_seed = {run["seed"]: run for run in sorted(runs, key=lambda r: len(r["curve"]))}
    return [by_seed[seed] for seed in sorted(by_seed)]


def chosen(runs: list[Run]) -> dict[str, list[Run]]:
    """For each optimizer its runs of the settings that count."""
    groups: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run["optimizer"]][json.dumps([run["steps"], run["settings"]], sort_keys=True)].append(run)
    best = {}
    for name, by_settings in groups.items():
        key = lambda group: (-len({r["seed"] for r in group}), statistics.fmean(map(final_loss, group)))  # noqa: E731
        best[name] = min(by_settings.values(), key=key)
    return {name: best[name] for name in NAMES if name in best}


def words(settings: Run) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def results(best: dict[str, list[Run]], step_s: dict[str, float]) -> str:
    """What each optimizer ends at, and where K-FAC is there; ``step_s`` is what a step takes."""
    accuracy = "accuracy" in next(iter(best.values()))[0]["test"]
    heads = ["optimizer", "settings", "seeds", "steps", "s a step", "s", "test loss", *["test accuracy"] * accuracy]
    heads += ["held-out loss", "K-FAC there after: steps", "ratio", "s", "ratio"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    ours = one_a_seed(best["kaisa"])
    for name, runs in best.items():
        seeds, steps = one_a_seed(runs), runs[0]["steps"]
        cells = [NAMES[name], words(runs[0]["settings"]), str(len(seeds)), str(steps)]
        cells += [f"{step_s[name]:.3f}", f"{steps * step_s[name]:.3g}"]
        cells.append(spread([r["test"]["loss"] for r in seeds]))
        if accuracy:
            cells.append(spread([r["test"]["accuracy"] for r in seeds]))
        target = statistics.fmean(map(final_loss, seeds))
        cells.append(spread([final_loss(r) for r in seeds]))
        if name != "kaisa":
            there = [crossing(r, target) for r in ours]
            for own, theirs in (there, steps), ([step_s["kaisa"] * t for t in there], step_s[name] * steps):
                cells += [spread(own, ".3g"), spread([t / theirs for t in own], ".2f")]
        lines.append("| " + " | ".join(cells) + " |" + " |" * (len(heads) - len(cells)))
    return "\n".join(lines)


def trials(runs: list[Run]) -> str:
    """Every setting that was tried with seed 0, by what it reached on the held-out images."""
    lines = ["| optimizer | steps | trials | settings: held-out loss |", "|---|---|---|---|"]
    groups: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for run in runs:
        if run["seed"] == 0:
            groups[run["optimizer"], run["steps"]][json.dumps(run["settings"])] = final_loss(run)
    for (name, steps), losses in sorted(groups.items(), key=lambda item: (list(NAMES).index(item[0][0]), item[0][1])):
        settings = [json.loads(key) for key in losses]
        usual = {
            k: v for s in settings for k, v in s.items() if 2 * sum(o.get(k) == v for o in settings) > len(settings)
        }
        told = sorted(zip(losses.values(), settings, strict=True), key=lambda pair: pair[0])
        unusual = [(loss, {k: v for k, v in s.items() if usual.get(k) != v}) for loss, s in told]
        each = [f"{words(s) or 'these'}: {loss:.4g}" for loss, s in unusual]
        always = f" (otherwise {words(usual)})" if usual else ""
        lines.append(f"| {NAMES[name]} | {steps} | {len(losses)} | {'; '.join(each)}{always} |")
    return "\n".join(lines)


def picture(best: dict[str, dict[str, list[Run]]], step_s: dict[str, dict[str, float]]) -> None:
    """Held-out loss against steps and against seconds, a row a task, a line a run."""
    from plotly import subplots

    titles = [f"{task}: held-out loss by {clock}" for task in best for clock in ("steps", "seconds")]
    figure = subplots.make_subplots(rows=len(best), cols=2, subplot_titles=titles, vertical_spacing=0.13)
    for row, (task, optimizers) in enumerate(best.items(), 1):
        for name, runs in optimizers.items():
            for i, run in enumerate(one_a_seed(runs)):
                for column, unit in enumerate((1.0, step_s[task][name]), 1):
                    figure.add_scatter(
                        x=[unit * p["step"] for p in run["curve"]], y=[p["loss"] for p in run["curve"]], row=row,
                        col=column, mode="lines", line={"color": COLOURS[name], "width": 2}, name=NAMES[name],
                        legendgroup=name, showlegend=(row, column, i) == (1, 1, 0),
                    )  # fmt: skip
        floor = min(final_loss(run) for runs in optimizers.values() for run in runs)
        figure.update_yaxes(
            range=[0.98 * floor, 1.35 * floor] if task == "autoencoder" else [0.9 * floor, 3 * floor], row=row
        )
    figure.update_layout(
        template="plotly_white", font_size=15, legend={"orientation": "h", "y": 1.06, "yanchor": "bottom"},
        margin={"l": 60, "r": 20, "t": 90, "b": 40},
    )  # fmt: skip
    figure.write_image(DOCS / "pictures/convergence.png", width=1100, height=400 * len(best) + 60, scale=1.5)


def main() -> None:
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()]
    tasks = sorted({run["task"] for run in runs})
    times = json.loads(STEP_TIMES.read_text())  # who is not in it is told of among the trials alone
    best = {task: chosen([r for r in runs if r["task"] == task and r["optimizer"] in times[task]]) for task in tasks}
    step_s = {task: {name: statistics.median(rounds) for name, rounds in times[task].items()} for task in tasks}
    page = (DOCS / "results/kaisa.md").read_text()
    for task in tasks:
        tried = trials([run for run in runs if run["task"] == task])
        text = f"{results(best[task], step_s[task])}\n\nAll trials, seed 0:\n\n{tried}"
        begin, end = f"<!-- begin {task}: benchmarks/kaisa/curves.py -->", f"<!-- end {task} -->"
        page = re.sub(f"{begin}.*?{end}", lambda _, t=text, b=begin, e=end: f"{b}\n{t}\n{e}", page, flags=re.DOTALL)
    (DOCS / "results/kaisa.md").write_text(page)
    picture(best, step_s)


if __name__ == "__main__":
    main()
