"""Command line of the preparation of text for language models: ``python -m hpcopt.prepare text PATH...``."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hpcopt.errors import DataError, HpcoptError
from hpcopt.prepare.dataset import DataSet, write_whole
from hpcopt.prepare.text.documents import CUTS, from_files
from hpcopt.prepare.text.levels import LEVELS
from hpcopt.prepare.text.make import Tokens, make
from hpcopt.prepare.text.sources import TEXTS
from hpcopt.store.text import StoredText


def parser(name: str) -> argparse.ArgumentParser:
    """The command line for ``text``, or for one of TEXTS."""
    p = argparse.ArgumentParser(
        prog=f"hpcopt prepare {name}",
        description="Turn text into tokens for a language model. Of every 20 documents, one is to validate and one to "
        "test; a vocabulary is made of the others.",
    )
    if name == "text":
        p.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="UTF-8 text files, or folders of *.txt")
        p.add_argument("--document", choices=CUTS, default="passage", help="what a document is (default: %(default)s)")
    else:
        p.add_argument("--source", type=Path, help="where the text lies, if not where the system installs it")
    level = "word" if name == "text" else TEXTS[name].level
    default = Tokens()
    p.add_argument("--level", choices=LEVELS, default=level, help="what a token is (default: %(default)s)")
    p.add_argument("--words", type=int, help="most tokens of a vocabulary (default: all words; 8192 pieces of words)")
    p.add_argument(
        "--least", type=int, default=default.least, help="occurrences of a word to be known (default: %(default)s)"
    )
    p.add_argument("--every", type=int, default=1, help="take one of so many documents (default: all)")
    p.add_argument("--name", default=name, help="of the data set, the folder's (default: %(default)s)")
    p.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of data sets (default: data)")
    p.add_argument("--force", action="store_true", help="make it again even if it is there")
    return p


def main(name: str, arguments: Sequence[str]) -> int:
    """Make the shards, unless they are there, and say what they hold; returns the exit code."""
    options = parser(name).parse_args(arguments)
    folder = options.data_dir / options.name
    try:
        there = folder.exists() and not options.force
        if not there:
            write_whole(folder, _read(name, options), lambda: options.force)
        text = StoredText(folder)
    except HpcoptError as error:
        print(f"hpcopt prepare: {error}", file=sys.stderr)
        return error.exit_code
    counts = ", ".join(f"{len(tokens):,} {split}" for split, tokens in text.splits.items())
    print(
        f"{folder}: {'already there' if there else 'prepared'}, {counts} tokens, level {text.level}, "
        f"vocabulary of {text.words:,}"
    )
    return 0


def _read(name: str, options: argparse.Namespace) -> DataSet:
    if min(options.least, options.every, 1 if options.words is None else options.words) < 1:
        raise DataError("--least, --every and --words take a number from 1 on")
    tokens = Tokens(options.level, options.words, options.least)
    if name != "text":
        return TEXTS[name].read(options.source, tokens, options.every)
    title = ", ".join(path.name for path in options.paths)
    documents = islice(from_files(options.paths, options.document), 0, None, options.every)
    return make(documents, tokens, title=title, source=title)
