"""Command line of hpcopt.export."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_DONE, HpcoptError
from hpcopt.export import otlp, trace
from hpcopt.export.kinds import KINDS
from hpcopt.export.progress import note, progress_of
from hpcopt.export.series import closed_step, series_of
from hpcopt.report.attributes import printable
from hpcopt.report.read import Run, read_run

PLACES = {"mlflow": "mlflow.db", "otlp": "otlp.jsonl"}  # in the run directory; others are called as their kind


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt export",
        description="Hand what a run measured to another program. A run may still be going on; a second export adds "
        "the steps since the first to the same run of the library's.",
        epilog="\n".join(f"{kind:<12} {what}" for kind, what in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", type=Path, metavar="RUN", help="run directory")
    p.add_argument("--to", required=True, choices=KINDS, help="see below")
    p.add_argument("--out", type=Path, metavar="PATH", help="somewhere else than in the run directory")
    p.add_argument("--endpoint", metavar="URL", help="post to a collector, with --to otlp: http://localhost:4318")
    p.add_argument("--last", type=int, default=100, metavar="STEPS", help="with --to trace: the newest so many (100)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a run; returns the exit code."""
    print_any_text()
    p = parser()
    options = p.parse_args(arguments)
    if options.endpoint and options.to != "otlp":
        p.error("--endpoint goes with --to otlp")
    if options.last < 1:
        p.error("--last takes a number of steps, at least 1")
    try:
        run = read_run(options.run)
        print(printable(export(run, options)))
    except HpcoptError as error:
        print(f"hpcopt export: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def export(run: Run, options: argparse.Namespace) -> str:
    """Do what the command line asks for; say what was done."""
    folder = run.path.parent
    place = options.out or folder / PLACES.get(options.to, options.to)
    if options.to == "trace":
        return f"{trace.write(run, place, options.last)} ranks' traces in {place}"
    to = options.endpoint or place
    kind = options.to if to == folder / PLACES.get(options.to, options.to) else f"{options.to} {to}"
    progress, last = progress_of(folder, kind), closed_step(run)
    series = [each.after(progress.step, last) for each in series_of(run)]
    series = [each for each in series if len(each.steps)]
    if not series:
        return f"nothing is new since step {progress.step}"
    write = otlp.post if options.endpoint else importlib.import_module(f"hpcopt.export.{options.to}").write
    note(folder, kind, replace(progress, id=write(run, series, progress, to), step=last))
    points = sum(len(each.steps) for each in series)
    return f"{points} points of {len(series)} series, steps {progress.step + 1} to {last}, in {to}"


if __name__ == "__main__":
    sys.exit(main())
