"""Command line of the preparation of text: ``[mpirun -n N] python -m hpcopt.prepare bert``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcopt.any_text import print_any_text
from hpcopt.comm.world import connect
from hpcopt.errors import HpcoptError
from hpcopt.prepare.bert.make import Recipe, make
from hpcopt.store.sentence_pairs import SentencePairs


def parser() -> argparse.ArgumentParser:
    """The command line."""
    default = Recipe()
    p = argparse.ArgumentParser(
        prog="hpcopt prepare bert",
        description="Turn text into sentence pairs for BERT. Under mpirun, ranks share the work.",
    )
    p.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="UTF-8 text files, or folders of *.txt; an empty line ends a document (default: the English in Python)",
    )
    p.add_argument("--vocabulary", type=Path, help="file of word pieces (default: one trained on the text)")
    p.add_argument("--words", type=int, default=default.words, help="word pieces to train (default: %(default)s)")
    p.add_argument(
        "--sequences",
        type=int,
        nargs="+",
        default=default.sequences,
        help="tokens in a sequence, a folder for each (default: 128 512)",
    )
    p.add_argument(
        "--shards", type=int, default=default.shards, help="training files of each length (default: %(default)s)"
    )
    p.add_argument(
        "--passes",
        type=int,
        default=default.passes,
        help="times to go through a document, each with other pairs and masks (default: %(default)s)",
    )
    p.add_argument(
        "--test-share",
        type=float,
        default=default.test_share,
        help="share of the documents kept for testing (default: %(default)s)",
    )
    p.add_argument(
        "--mask-at-run-time",
        action="store_true",
        help="leave the tokens as they are: training hides others in every epoch",
    )
    p.add_argument("--seed", type=int, default=default.seed, help="of everything random (default: %(default)s)")
    p.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="folder of data sets; this one is in `bert` (default: data)"
    )
    p.add_argument("--force", action="store_true", help="make it again even if it is there")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare sentence pairs, unless they are there; returns the exit code. Collective."""
    print_any_text()
    options = parser().parse_args(arguments)
    recipe = Recipe(
        text=options.text,
        vocabulary=options.vocabulary,
        words=options.words,
        sequences=options.sequences,
        shards=options.shards,
        passes=options.passes,
        test_share=options.test_share,
        masked=not options.mask_at_run_time,
        seed=options.seed,
    )
    folder = options.data_dir / "bert"
    world = None
    try:
        world = connect()
        there = folder.exists() and not options.force
        if not there:
            make(recipe, folder, world)
        if world.rank == 0:
            print(f"{folder}: {'already there' if there else 'prepared'}, {_summary(folder)}", flush=True)
        world.close()
    except HpcoptError as error:
        if world is None or world.rank == 0 or not error.on_every_rank:
            print(f"hpcopt prepare: {error}", file=sys.stderr, flush=True)
        if world is not None and not error.on_every_rank:
            world.transport.abort(error.exit_code)
        return error.exit_code
    return 0


def _summary(folder: Path) -> str:
    lengths = sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: int(entry.name))
    counts = (f"{len(SentencePairs(f / 'train')):,} + {len(SentencePairs(f / 'test')):,} of {f.name}" for f in lengths)
    return f"training + test pairs: {', '.join(counts)} tokens"


if __name__ == "__main__":
    sys.exit(main())
