"""Several runs side by side: what differs between their jobs, and their figures, as text."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from hpcopt.errors import MetricsError
from hpcopt.report.figure import names_of
from hpcopt.report.summary import Runs, Summary, differing_settings
from hpcopt.report.target import Reached
from hpcopt.report.text import duration, energy, fraction, size

MOST_SETTINGS, MOST_CHARACTERS = 6, 28


def overview(runs: Runs, chosen: Sequence[str] = ()) -> tuple[dict[str, list[str]], list[str]]:
    """Give columns by heading, each with a text a run, and notes about them.

    Args:
        chosen: headings or settings to show, in this order, beside the runs' names; by default all figures, and no more
            than six settings.

    Raises:
        MetricsError: there is no such column.
    """
    settings = differing_settings([run for run, _ in runs])
    settings.pop("ranks", None)
    names = {"run": names_of([run for run, _ in runs]), "state": [_state(summary) for _, summary in runs]}
    figures = _figures([summary for _, summary in runs])
    if chosen:
        every = {**names, **settings, **figures}
        found = {"run": names["run"], **{key: every[key] for key in (_find(name, every) for name in chosen)}}
        return _capped(_short(found)), []
    kept = dict(list(settings.items())[:MOST_SETTINGS])
    rest = [key for key in settings if key not in kept]
    notes = [f"{len(rest)} more settings differ, which --columns chooses from: {', '.join(rest)}"] if rest else []
    return _capped(_short({**names, **kept, **figures})), notes


def _figures(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    figures = {
        "ranks": [str(s.ranks) for s in summaries],
        "hosts": [str(len(s.hosts)) for s in summaries],
        "steps": [f"{s.steps:,}" for s in summaries],
        "time": [duration(s.elapsed_s) for s in summaries],
        "step": [duration(s.step_s) for s in summaries],
        "samples/s": [f"{s.samples_per_s:,.0f}" for s in summaries],
        "sent/step": [size(s.sent_bytes) for s in summaries],
        "of dense": [fraction(s.sent_bytes, s.dense_bytes) for s in summaries],
        "memory": [size(s.peak_memory_bytes) for s in summaries],
        "loss": [f"{s.loss:.4g}" for s in summaries],
    }
    if any(math.isfinite(s.energy_j) for s in summaries):
        figures["energy"] = [energy(s.energy_j) for s in summaries]
    if any(s.to_target for s in summaries):
        reached = [s.to_target or asdict(Reached("")) for s in summaries]
        figures |= {
            "target": [r["target"] for r in reached],
            "steps to it": [f"{r['step']:,.0f}" if math.isfinite(r["step"]) else "-" for r in reached],
            "time to it": [duration(r["time_s"]) for r in reached],
            "sent to it": [size(r["sent_bytes"]) for r in reached],
        }
    if any(s.efficiencies for s in summaries):
        figures["efficiency"] = [_efficiency(**s.efficiencies) if s.efficiencies else "" for s in summaries]
    scores = dict.fromkeys(name for s in summaries for name in s.scores)
    return figures | {name: [f"{s.scores[name]:.4g}" if name in s.scores else "" for s in summaries] for name in scores}


def _efficiency(parallel: float, load_balance: float, communication: float) -> str:
    """POP's parallel efficiency, and whose product it is."""
    return f"{parallel:.0%}={load_balance:.0%}*{communication:.0%}"


def _state(s: Summary) -> str:
    return s.state + ("*" if s.labels else "") + (f", {s.restarts} restarts" if s.restarts else "")


def _find(name: str, columns: dict[str, list[str]]) -> str:
    """The column of a heading, or of the end of a setting's name."""
    found = [key for key in columns if key == name] or [key for key in columns if key.endswith(f".{name}")]
    if len(found) != 1:
        known = ", ".join(found or columns)
        raise MetricsError(f"--columns: {name!r} is {'several' if found else 'none'} of the columns; there are {known}")
    return found[0]


def _short(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Settings without their section, where that leaves no two of one name."""
    ends = [key.split(".", 1)[-1] for key in columns]
    return {end if ends.count(end) == 1 else key: columns[key] for end, key in zip(ends, columns, strict=True)}


def _capped(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    return {
        key: [
            cell if len(cell) <= MOST_CHARACTERS or key == "run" else f"{cell[: MOST_CHARACTERS - 1]}…" for cell in own
        ]
        for key, own in columns.items()
    }
