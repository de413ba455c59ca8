"""The report for a terminal: one run at length, several side by side."""

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpcopt.report.overview import overview
from hpcopt.report.read import Run
from hpcopt.report.summary import Summary, best_of, notes_of
from hpcopt.report.text import duration, energy, fraction, size

BLOCKS = " ▁▂▃▄▅▆▇█"
BAR = 32
COLOURS = {"finished": "green", "running": "cyan", "stopped": "yellow", "interrupted": "red"}


def show(runs: Sequence[tuple[Run, Summary]], console: Console, columns: Sequence[str] = ()) -> None:
    """Print the report: a single run at length, several as a table with what differs between their jobs."""
    if len(runs) == 1 and not columns:
        console.print(one(*runs[0]))
    else:
        console.print(several(runs, console.width, columns))


def one(run: Run, summary: Summary) -> RenderableType:
    """One run: what ran, how far, how fast, where time and bytes went, scores, restarts."""
    parts: list[RenderableType] = [_title(run, summary), _facts(run, summary)]
    if summary.phases:
        parts += [Text("\nTime of a step", style="bold"), _phases(summary)]
        if summary.efficiencies:
            parts += [Text("\nEfficiency", style="bold"), _efficiencies(summary.efficiencies)]
    if len(run.evaluations.get("step", ())):
        parts += [Text("\nScores", style="bold"), _scores(run)]
    if summary.restarts > 0:
        parts += [Text("\nRestarts", style="bold"), _restarts(run)]
    parts += [Text(f"\n{label}", style="yellow") for label in (*summary.labels, *notes_of([run]))]
    return Group(*parts, Text())


def several(runs: Sequence[tuple[Run, Summary]], width: int, chosen: Sequence[str] = ()) -> RenderableType:
    """Several runs: a row each, or, where that is too wide, a column each, as many beside each other as fit."""
    columns, notes = overview(runs, chosen)
    widths = [max(map(len, (heading, *cells))) + 2 for heading, cells in columns.items()]
    if sum(widths) <= width:
        tables = [_beside(list(columns), list(zip(*columns.values(), strict=True)))]
    else:
        first = max(map(len, columns)) + 2
        needed = max(len(cell) for cells in columns.values() for cell in cells) + 2
        fit = max(1, (width - first) // needed)
        tables = [
            _beside(["run", *columns["run"][at : at + fit]], [[key, *own[at : at + fit]] for key, own in rest])
            for at in range(0, len(runs), fit)
            for rest in [[(key, own) for key, own in columns.items() if key != "run"]]
        ]
    labels = [f"* {label}" for label in dict.fromkeys(label for _, s in runs for label in s.labels)]
    notes = [*labels, *notes, *notes_of([run for run, _ in runs])]
    return Group(*tables, *(Text(note, style="yellow") for note in notes))


def _beside(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose cells are cut nowhere; states have their colour."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell.rstrip("*").split(",")[0], "")) for cell in row))
    return table


def _title(run: Run, summary: Summary) -> RenderableType:
    sections = ("workload", "solver", "exchange", "codec")
    what = [run.config[s]["name"] for s in sections if isinstance(run.config.get(s), dict) and "name" in run.config[s]]
    return Text.assemble((summary.name, "bold"), "  ", ", ".join(what), "  ", (summary.path, "dim"))


def _facts(run: Run, s: Summary) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2))
    state = Text.assemble((s.state, COLOURS[s.state]), f": {s.outcome}, step {s.steps:,}, epoch {s.epoch:.4g}")
    table.add_row("state", state)
    threads, library = run.attributes.get("threads"), run.attributes.get("mpi_library", "")
    hosts = ", ".join(s.hosts[:4]) + (", ..." if len(s.hosts) > 4 else "")
    where = f"{s.ranks} ranks on {len(s.hosts)} {'host' if len(s.hosts) == 1 else 'hosts'} ({hosts})"
    software = [f"{threads} thread{'s' * (threads != 1)} a rank"] * (threads is not None) + [
        " ".join(library.replace("Version:", "").split())
    ]
    table.add_row("ran on", ", ".join([where, *filter(None, software)]))
    table.add_row("time", f"{duration(s.elapsed_s)} in all, {run.attributes.get('date_created', '')}")
    quartiles = f"quartiles {duration(s.step_s_low)} and {duration(s.step_s_high)}"
    table.add_row("step", f"{duration(s.step_s)} median, {quartiles}; {s.samples_per_s:,.0f} samples/s")
    sent = f"{size(s.sent_bytes)} a step over all ranks"
    table.add_row("sent", f"{sent}, {fraction(s.sent_bytes, s.dense_bytes)} of dense")
    if target := s.to_target:
        took = (
            f"step {target['step']:,.0f}, {duration(target['time_s'])}, {size(target['sent_bytes'])} sent by all ranks"
        )
        table.add_row(
            "target", f"{target['target']} " + (f"at {took}" if math.isfinite(target["step"]) else "not reached")
        )
    if math.isfinite(s.peak_memory_bytes):
        table.add_row("memory", f"{size(s.peak_memory_bytes)} at most on a rank")
    counted = run.attributes.get("energy_of") or "nodes"
    table.add_row("energy", energy(s.energy_j) + f" of all nodes' {counted}" * math.isfinite(s.energy_j))
    for name, version in s.plugins.items():
        table.add_row("plugged in", f"{name} ({version})")
    losses = run.columns.get("loss", np.zeros(0))
    if len(known := losses[~np.isnan(losses)]):
        table.add_row("loss", f"{sparkline(losses)}  {known[0]:.4g} to {s.loss:.4g}")
    return table


def _phases(summary: Summary) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for phase, (seconds, share) in sorted(summary.phases.items(), key=lambda item: -item[1][0]):
        table.add_row(phase, duration(seconds), f"{share:6.1%}", Text("█" * max(1, round(share * BAR)), style="cyan"))
    for phase, seconds in summary.overlapped.items():
        table.add_row(Text(phase, style="dim"), duration(seconds), "", Text("beside these, not added", style="dim"))
    for phase, seconds in summary.beside.items():
        if seconds > 0:
            table.add_row(
                Text(phase, style="dim"), duration(seconds), "", Text("in all, beside the steps", style="dim")
            )
    return table


def _efficiencies(found: dict[str, float]) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, what in (
        ("parallel", "load balance x communication"),
        ("load_balance", "ranks' mean work over the most of one"),
        ("communication", "the most work of one rank over the step"),
    ):
        table.add_row(name.replace("_", " "), f"{found[name]:6.1%}", Text(what, style="dim"))
    return table


def _scores(run: Run) -> RenderableType:
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for heading, justify in (("", "left"), ("", "left"), ("first", "right"), ("best", "right"), ("last", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, values in run.evaluations.items():
        if name not in ("step", "time_s"):
            best = best_of(run, name)
            table.add_row(name, sparkline(values), f"{values[0]:.4f}", f"{best:.4f}", f"{values[-1]:.4f}")
    return table


def _restarts(run: Run) -> RenderableType:
    lines = [
        f"step {s.step:,} after {duration(s.time_s)}: {s.reason}, {s.ranks} ranks, {s.date}" for s in run.starts[1:]
    ]
    return Padding("\n".join(lines), (0, 2))


def sparkline(values: np.ndarray, width: int = BAR) -> str:
    """Values as a row of blocks, each the mean of its part of the values; what is not finite is left blank."""
    parts = np.array_split(np.asarray(values, float), min(width, len(values)))
    means = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts])
    if not np.isfinite(means).any():
        return ""
    low, high = np.nanmin(means), np.nanmax(means)
    levels = (means - low) / (high - low) * 7 + 1 if high > low else np.where(np.isfinite(means), 4.0, np.nan)
    return "".join(BLOCKS[round(level)] if math.isfinite(level) else " " for level in levels)
