"""Writes what was recorded into the tables of docs/block_admm.md:  python -m benchmarks.block_admm.tables"""

import contextlib
import io
import re
from pathlib import Path

from benchmarks.block_admm import accuracy, factors, hard, pipeline

PAGE = Path("docs/block_admm.md")
TABLES = {"accuracy": accuracy.table, "hard": hard.table, "factors": factors.table, "pipeline": pipeline.table}


def main() -> None:
    page = PAGE.read_text()
    for name, table in TABLES.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            table()
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        page = re.sub(f"{begin}.*?{end}", lambda _, t=printed, b=begin, e=end: b + t.getvalue() + e, page, flags=re.S)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
