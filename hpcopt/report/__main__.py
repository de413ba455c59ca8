"""Command line of hpcopt.report."""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_DONE, HpcoptError, MetricsError
from hpcopt.report import export, extra_p, html, pictures, prediction_views, terminal
from hpcopt.report.figure import write_tables
from hpcopt.report.figures import figures_of
from hpcopt.report.prediction import predict
from hpcopt.report.read import read_run
from hpcopt.report.summary import Runs, summarise

FILES = {
    "json": "the figures and the prediction as JSON",
    "csv": "a row a run, and one a prediction",
    "extra-p": "step and phase times for Extra-P",
}
FOLLOW_S = 5.0
LOG_WIDTH = 160  # columns, where the output is not a terminal's


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt report",
        description="Show what runs measured. A run may still be going on.",
        epilog="Times of a step leave out the first ten steps after a start and count its slowest rank.",
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a metrics.h5")
    for name, what in FILES.items():
        p.add_argument(f"--{name}", nargs="?", const=Path("-"), type=Path, metavar="FILE", help=f"write {what}")
    p.add_argument("--html", type=Path, metavar="FILE", help="write one page with all plots that needs nothing else")
    p.add_argument("--png", type=Path, metavar="DIR", help="write each plot as a picture")
    p.add_argument("--tables", type=Path, metavar="DIR", help="write the table behind each plot as CSV")
    p.add_argument("--follow", action="store_true", help="show it again every few seconds, until all have ended")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on runs; returns the exit code."""
    print_any_text()
    options = parser().parse_args(arguments)
    try:
        runs = _read(options.runs)
        console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
        if not _write_files(runs, options):
            _show(runs, console)
        while options.follow and any(summary.state == "running" for _, summary in runs):
            time.sleep(FOLLOW_S)
            runs = _read(options.runs)
            _write_files(runs, options)
            console.clear()
            _show(runs, console)
    except KeyboardInterrupt:
        pass
    except HpcoptError as error:
        print(f"hpcopt report: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def _show(runs: Runs, console: Console) -> None:
    terminal.show(runs, console)
    if (prediction := predict(runs)) is not None:
        console.print(prediction_views.in_terminal(prediction))


def _read(paths: Sequence[Path]) -> Runs:
    return [(run, summarise(run)) for run in map(read_run, paths)]


def _write_files(runs: Runs, options: argparse.Namespace) -> bool:
    """Write what the command line asks for; whether it asks for anything."""
    if options.html or options.png or options.tables:
        figures = figures_of(runs)
        if options.html:
            _write(options.html, html.page(runs, figures))
        if options.png:
            pictures.write(figures, options.png)
        if options.tables:
            write_tables(figures, options.tables)
    if options.json or options.csv:
        prediction = predict(runs)
        if options.json:
            _write(options.json, export.as_json(runs, prediction))
        if options.csv:
            _write(options.csv, export.as_csv(runs, prediction))
    if options.extra_p:
        _write(options.extra_p, extra_p.as_json_lines(runs))
    return any((options.html, options.png, options.tables, options.json, options.csv, options.extra_p))


def _write(file: Path, text: str) -> None:
    """Write to a file, or to standard output if it is called `-`."""
    if file == Path("-"):
        print(text, end="" if text.endswith("\n") else "\n")
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as cause:
        raise MetricsError(f"cannot write {file}: {cause.strerror}") from cause


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it without a word
    sys.exit(main())
