"""Command line of hpcopt.report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hpcopt.errors import EXIT_DONE, HpcoptError, MetricsError
from hpcopt.report import export, terminal
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise

LOG_WIDTH = 160  # columns, where the output is not a terminal's


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m hpcopt.report",
        description="Show what runs measured. A run may still be going on.",
        epilog="Times of a step leave out the first ten steps after a start and count its slowest rank.",
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a metrics.h5")
    for name in ("json", "csv"):
        p.add_argument(f"--{name}", nargs="?", const=Path("-"), type=Path, metavar="FILE", help=f"write {name.upper()}")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on runs; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        runs = [(run, summarise(run)) for run in map(read_run, options.runs)]
        for file, form in ((options.json, export.as_json), (options.csv, export.as_csv)):
            if file is not None:
                _write(file, form(runs))
        if options.json is None and options.csv is None:
            terminal.show(runs, Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH))
    except HpcoptError as error:
        print(f"hpcopt.report: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def _write(file: Path, text: str) -> None:
    """Write to a file, or to standard output if it is called `-`."""
    if file == Path("-"):
        print(text, end="" if text.endswith("\n") else "\n")
        return
    try:
        file.write_text(text)
    except OSError as cause:
        raise MetricsError(f"cannot write {file}: {cause.strerror}") from cause


if __name__ == "__main__":
    sys.exit(main())
