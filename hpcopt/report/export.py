"""The summaries and the prediction as data for other programs: JSON, and CSV with a row a run."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpcopt.report.prediction import Prediction
from hpcopt.report.read import Run
from hpcopt.report.step_model import Estimate
from hpcopt.report.summary import Summary, differing_settings
from hpcopt.store import strict_json

PREDICTED, HELD_OUT = "predicted", "predicted, held out"  # in the column `state` of rows that are not a run's


def as_json(runs: Sequence[tuple[Run, Summary]], prediction: Prediction | None) -> str:
    """`runs`: all figures and the jobs; `prediction`: see Prediction. What is not known is null."""
    figures = [{**summary.as_dict(), "job": run.config} for run, summary in runs]
    return strict_json.dumps({"runs": figures, "prediction": prediction and _as_dict(prediction)}, indent=1)


def as_csv(runs: Sequence[tuple[Run, Summary]], prediction: Prediction | None) -> str:
    """A row a run: the settings in which the jobs differ, then the figures, with phases and scores as columns.

    Then a row for each step time that was predicted, with the ends of its interval as step_s_low and step_s_high.
    """
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
    rows += [] if prediction is None else _rows(prediction)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    held_out = [{**asdict(h), "error": h.error} for h in prediction.held_out]
    rows = [{**asdict(row), "fastest": row.fastest} for row in prediction.rows]
    return {**asdict(prediction), "held_out": held_out, "rows": rows}


def _rows(prediction: Prediction) -> list[dict[str, Any]]:
    held_out = [
        {**_row(h.series, HELD_OUT, h.ranks, h.predicted), "measured_s": h.measured_s} for h in prediction.held_out
    ]
    return held_out + [
        {**_row(name, PREDICTED, row.ranks, estimate), "scaling": row.kind}
        for row in prediction.rows
        for name, estimate in row.steps.items()
        if estimate is not None
    ]


def _row(series: str, state: str, ranks: int, step: Estimate) -> dict[str, Any]:
    times = {"step_s": step.seconds, "step_s_low": step.low_s, "step_s_high": step.high_s}
    return {"name": series, "state": state, "ranks": ranks, **times}
