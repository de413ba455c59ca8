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
from hpcopt.report.attributes import printable
from hpcopt.report.figure import write_tables
from hpcopt.report.figures import figures_of
from hpcopt.report.output import STDOUT, write_out
from hpcopt.report.prediction import predict
from hpcopt.report.read import read_run
from hpcopt.report.summary import Runs, summarise
from hpcopt.report.target import Target

FILES = {
    "json": "the figures, and the prediction if any, as JSON",
    "csv": "a row a run",
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
        p.add_argument(f"--{name}", nargs="?", const=STDOUT, type=Path, metavar="FILE", help=f"write {what}")
    p.add_argument("--html", type=Path, metavar="FILE", help="write one page with all plots that needs nothing else")
    p.add_argument("--png", type=Path, metavar="DIR", help="write each plot as a picture")
    p.add_argument("--tables", type=Path, metavar="DIR", help="write the table behind each plot as CSV")
    p.add_argument(
        "--columns",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=[],
        metavar="NAMES",
        help="show these settings and figures of several runs, such as solver.lr,step,memory",
    )
    p.add_argument(
        "--predict",
        type=_ranks,
        metavar="RANKS",
        help="fit a model and predict steps on that many ranks, such as 128,1024; takes runs of at least two sizes on "
        "several hosts that differ in ranks, batch, seed and exchange alone",
    )
    p.add_argument(
        "--target",
        type=_target,
        metavar="SCORE=VALUE",
        help="tell what reaching a score took, such as test_accuracy=0.9; by default the job's stop_at",
    )
    p.add_argument("--follow", action="store_true", help="show it again every few seconds, until all have ended")
    return p


def _ranks(text: str) -> tuple[int, ...]:
    """Read numbers of ranks: "128,1024"."""
    ranks = text.split(",")
    if not all(each.strip().isdecimal() and int(each) > 1 for each in ranks):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of ranks, such as 128,1024")
    return tuple(map(int, ranks))


def _target(text: str) -> Target:
    """Read a target: "test_accuracy=0.9"."""
    score, _, value = text.partition("=")
    try:
        return Target(score, float(value))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no target, such as test_accuracy=0.9") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on runs; returns the exit code."""
    print_any_text()
    options = parser().parse_args(arguments)
    exit_code = EXIT_DONE
    try:
        runs, exit_code = _read(options.runs, options.target)
        width = None if sys.stdout.isatty() else LOG_WIDTH
        console = Console(highlight=False, markup=False, emoji=False, width=width)
        if not _write_files(runs, options):
            _show(runs, options, console)
        while _goes_on(runs, options):
            time.sleep(FOLLOW_S)
            runs, exit_code = _read(options.runs, options.target)
            _write_files(runs, options)
            console.clear()
            _show(runs, options, console)
    except KeyboardInterrupt:
        pass
    except HpcoptError as error:
        return _complain(error)
    return exit_code


def _goes_on(runs: Runs, options: argparse.Namespace) -> bool:
    """Whether there will be another look."""
    return bool(options.follow) and any(summary.state == "running" for _, summary in runs)


def _complain(error: HpcoptError) -> int:
    """Say what is wrong; give the exit code."""
    print(f"hpcopt report: {printable(str(error))}", file=sys.stderr)
    return error.exit_code


def _show(runs: Runs, options: argparse.Namespace, console: Console) -> None:
    terminal.show(runs, console, options.columns)
    if options.predict:
        console.print(prediction_views.in_terminal(predict(runs, options.predict)))


def _read(paths: Sequence[Path], target: Target | None) -> tuple[Runs, int]:
    """Read the runs that can be read, and complain about the others; give the exit code too.

    Raises:
        MetricsError: none can be read.
    """
    runs, errors = [], []
    for path in paths:
        try:
            runs.append((run := read_run(path), summarise(run, target)))
        except MetricsError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    return runs, max(map(_complain, errors), default=EXIT_DONE)


def _write_files(runs: Runs, options: argparse.Namespace) -> bool:
    """Write what the command line asks for; whether it asks for anything."""
    asked = any((options.html, options.png, options.tables, options.json, options.csv, options.extra_p))
    prediction = predict(runs, options.predict) if asked and options.predict else None
    if options.html or options.png or options.tables:
        figures = figures_of(runs, prediction)
        if options.html:
            write_out(
                options.html, html.page(runs, figures, options.columns, FOLLOW_S if _goes_on(runs, options) else None)
            )
        if options.png:
            pictures.write(figures, options.png)
        if options.tables:
            write_tables(figures, options.tables)
    if options.json:
        write_out(options.json, export.as_json(runs, prediction))
    if options.csv:
        write_out(options.csv, export.as_csv(runs))
    if options.extra_p:
        write_out(options.extra_p, extra_p.as_json_lines(runs))
    return asked


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it without a word
    sys.exit(main())
