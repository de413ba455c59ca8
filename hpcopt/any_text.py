"""What commands print in a terminal, or into a log, that does not know all characters."""

import io
import sys


def print_any_text() -> None:
    """Let standard output and error show a ``?`` for what the locale's encoding lacks, for which print would raise."""
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="replace")
