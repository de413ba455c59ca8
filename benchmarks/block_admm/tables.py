"""Writes what was recorded into the tables of docs/results/block_admm.md:  python -m benchmarks.block_admm.tables"""

import contextlib
import io
import re
from pathlib import Path

from benchmarks.block_admm import accuracy, factors, hard, pipeline
from benchmarks.block_admm.bench import recorded

PAGE = Path("docs/results/block_admm.md")
TABLES = {
    "accuracy": accuracy.table,
    "hard": hard.table,
    "factors": factors.table,
    "pipeline": pipeline.table,
}


def written(page: str) -> str:
    """The page with its tables as recorded; one of an experiment without runs stays as it is."""
    for name, table in TABLES.items():
        if not recorded(name):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            table()
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        page = re.sub(f"{begin}.*?{end}", lambda _, t=printed, b=begin, e=end: b + t.getvalue() + e, page, flags=re.S)
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
