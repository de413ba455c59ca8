"""Command line of hpcopt.prepare."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcopt.any_text import print_any_text
from hpcopt.errors import HpcoptError
from hpcopt.prepare import GRAPHS, SOURCES, arrays, is_prepared, prepare, splits_of
from hpcopt.prepare.bert import __main__ as bert
from hpcopt.prepare.text import __main__ as text
from hpcopt.prepare.text.sources import TEXTS
from hpcopt.store.shards import Shards


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare one data set and say what it holds; returns the exit code."""
    print_any_text()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["bert"]:  # text has options of its own, and is prepared by all ranks
        return bert.main(arguments[1:])
    if arguments[:1] == ["arrays"]:
        return arrays.main(arguments[1:])
    if arguments[:1] == ["text"] or (arguments and arguments[0] in TEXTS):
        return text.main(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(
        prog="hpcopt prepare",
        description="Turn raw data into the HDF5 shards that training reads.",
        epilog="Text for BERT, text for language models, and arrays and tables of yours have options of their own: "
        "hpcopt prepare bert --help, text --help, arrays --help",
    )
    parser.add_argument("name", choices=list(SOURCES), help="the data set, or bert, text or arrays")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    parser.add_argument(
        "--source", type=Path, help="folder of the raw files, if they are not where the system installs them"
    )
    parser.add_argument(
        "--force", action="store_true", help="make the shards again even if they are there and undamaged"
    )
    options = parser.parse_args(arguments)
    try:
        there = not options.force and is_prepared(options.name, options.data_dir)
        folder = options.data_dir / options.name
        if not there:
            prepare(options.name, options.data_dir, force=True, source=options.source)
        rows = ", ".join(f"{len(Shards(folder, split)):,} {split}" for split in splits_of(options.name))
    except HpcoptError as error:
        print(f"hpcopt prepare: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{folder}: {'already there' if there else 'prepared'}, {rows}{'' if options.name in GRAPHS else ' rows'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
