"""Step and phase times for Extra-P, which fits performance models: JSON lines, one a run, metric and place.

Format: https://github.com/extra-p/extrap, docs/file-formats.md. Runs with the same number of ranks are repeats.
"""

import json
from collections import defaultdict

from hpcopt.report.summary import Runs


def as_json_lines(runs: Runs) -> str:
    """Median seconds of a step and mean seconds of its phases, over the number of ranks p."""
    repeats: dict[tuple[int, str], list[float]] = defaultdict(list)
    for run, summary in runs:
        if summary.phases:
            repeats[run.ranks, "step"].append(summary.step_s)
            phases = {phase: seconds for phase, (seconds, _) in summary.phases.items()} | summary.overlapped
            for phase, seconds in phases.items():
                repeats[run.ranks, f"step->{phase}"].append(seconds)
    lines = [
        {"params": {"p": ranks}, "metric": "time", "callpath": place, "value": seconds}
        for (ranks, place), seconds in sorted(repeats.items())
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)
