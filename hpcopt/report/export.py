"""What was measured for other programs: JSON, with a prediction that was asked for, and CSV with a row a run."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpcopt.report.figure import names_of
from hpcopt.report.prediction import Prediction
from hpcopt.report.read import Run
from hpcopt.report.summary import Summary, differing_settings
from hpcopt.store import strict_json

FLAT = {
    "scores": "{}",
    "beside": "{}_total_s",
    "best": "best_{}",
    "efficiencies": "{}_efficiency",
    "overlapped": "{}_s",
    "plugins": "plugin {}",
    "to_target": "to_target_{}",
}


def as_json(runs: Sequence[tuple[Run, Summary]], prediction: Prediction | None) -> str:
    """`runs`: all figures and the jobs; `prediction`: see Prediction. What is not known is null."""
    names = names_of([run for run, _ in runs])
    figures = [{"run": name, **s.as_dict(), "job": run.config} for name, (run, s) in zip(names, runs, strict=True)]
    return strict_json.dumps({"runs": figures, "prediction": prediction and _as_dict(prediction)}, indent=1)


def as_csv(runs: Sequence[tuple[Run, Summary]]) -> str:
    """A row a run, under the name that the page has for it: the settings in which the jobs differ, then the figures,
    with phases and scores as columns.
    """
    measured = [run for run, _ in runs]
    settings = differing_settings(measured)
    rows = []
    for index, (name, (_, summary)) in enumerate(zip(names_of(measured), runs, strict=True)):
        row: dict[str, Any] = {"run": name, **{key: each[index] for key, each in settings.items()}}
        for key, value in summary.as_dict().items():
            if key == "phases":
                row |= {f"{phase}_s": seconds for phase, (seconds, _) in value.items()}
            elif key in FLAT:
                row |= {FLAT[key].format(name): number for name, number in value.items()}
            else:
                row[key] = " ".join(value) if isinstance(value, tuple) else value
        rows.append(row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    held_out = [{**asdict(h), "error": h.error} for h in prediction.held_out]
    rows = [{**asdict(row), "fastest": row.fastest} for row in prediction.rows]
    return {**asdict(prediction), "held_out": held_out, "rows": rows}
