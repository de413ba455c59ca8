"""The summaries as data for other programs: JSON, and CSV with a row a run."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from hpcopt.report.read import Run
from hpcopt.report.summary import Summary, differing_settings


def as_json(runs: Sequence[tuple[Run, Summary]]) -> str:
    """All figures and the jobs; what was not measured is null."""
    return json.dumps([{**_finite(summary.as_dict()), "job": run.config} for run, summary in runs], indent=1)


def as_csv(runs: Sequence[tuple[Run, Summary]]) -> str:
    """A row a run: the settings in which the jobs differ, then the figures, with phases and scores as columns."""
    settings = differing_settings([run for run, _ in runs])
    rows = []
    for index, (_, summary) in enumerate(runs):
        row: dict[str, Any] = {}
        for name, value in summary.as_dict().items():
            if name == "phases":
                row |= {f"{phase}_s": seconds for phase, (seconds, _) in value.items()}
            elif isinstance(value, dict):
                row |= value if name == "scores" else {f"{key}_total_s": number for key, number in value.items()}
            else:
                row[name] = " ".join(value) if isinstance(value, tuple) else value
        rows.append({"name": row.pop("name"), **{key: each[index] for key, each in settings.items()}, **row})
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
