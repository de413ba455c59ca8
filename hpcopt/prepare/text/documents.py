"""Documents of text: from files of anybody's, Python's manual, a dictionary of English and WordNet."""

import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from hpcopt.errors import DataError
from hpcopt.prepare.wordnet import FILES
from hpcopt.prepare.wordnet import FOLDER as WORDNET

Cut = Literal["passage", "line", "file"]
CUTS: tuple[Cut, ...] = get_args(Cut)
PASSAGE = 2000  # characters, at least
GCIDE = Path("/usr/share/dictd/gcide.dict.dz")
_OWN_ENTRIES = "00-database"  # of the dictionary, on itself
_SOURCE = re.compile(r"^\s*\[[^\[\]]*(?:1913 Webster|WordNet|PJC|Century Dict)[^\[\]]*\]\s*$", re.MULTILINE)


def from_files(paths: Sequence[Path], cut: Cut) -> Iterator[str]:
    """The documents of UTF-8 text files, and of all ``*.txt`` in folders.

    Args:
        paths: files and folders, in this order.
        cut: what one is: a passage of paragraphs, which empty lines end; a line; a file.

    Raises:
        DataError: a path is missing, cannot be read, or is not UTF-8.
    """
    for path in paths:
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        for file in files:
            text = _read(file)
            parts = passages(text) if cut == "passage" else text.splitlines() if cut == "line" else [text]
            yield from (part.strip("\n") for part in parts if part.strip())


def passages(text: str) -> Iterator[str]:
    """The paragraphs of a text, as many together as have PASSAGE characters; the last have fewer."""
    passage: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        passage.append(paragraph)
        if sum(map(len, passage)) >= PASSAGE:
            yield "\n\n".join(passage)
            passage = []
    yield "\n\n".join(passage)


def topics() -> Iterator[str]:
    """The passages of Python's own manual, whose topics pydoc shows: some 460,000 characters. Which text this is
    depends on the version of Python.
    """
    from pydoc_data.topics import topics

    for _, text in sorted(topics.items()):
        yield from (passage.strip("\n") for passage in passages(text) if passage.strip())


def python_sources(source: Path | None) -> Iterator[str]:
    """The sources of Python's documentation, a document a file: 1.4 million words in version 3.11.

    Raises:
        DataError: they are not there.
    """
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-doc"
    folder = source or Path(f"/usr/share/doc/{package.removesuffix('-doc')}/html/_sources")
    files = sorted(folder.rglob("*.rst.txt"))
    if not files:
        raise DataError(f"no *.rst.txt in {folder}: `apt-get install {package}`, or name a folder with --source")
    yield from from_files(files, "file")


def gcide(source: Path | None) -> Iterator[str]:
    """The entries of the Collaborative International Dictionary of English, a document a headword: 5 million words.
    Lines that only name the source of a paragraph are left out.

    Raises:
        DataError: it is not there, or no dictionary.
    """
    path = source or GCIDE
    try:
        text = gzip.decompress(path.read_bytes()).decode(errors="replace")  # dictzip's files are gzip's
    except (OSError, EOFError, zlib.error) as cause:
        raise DataError(
            f"no dictionary in {path} ({cause}): `apt-get install dict-gcide`, or name gcide.dict.dz with --source"
        ) from cause
    found, before = False, None
    document: list[str] = []
    for entry in re.split(r"\n(?=\S)", _SOURCE.sub("", text)):
        headword, backslash, _ = entry.partition(" \\")
        if not backslash or headword.startswith(_OWN_ENTRIES):
            continue
        found = True
        if headword.lower() != before and document:
            yield "\n".join(document)
            document = []
        before = headword.lower()
        document.append(re.sub(r"\n\s*\n+", "\n", entry).strip())
    if not found:
        raise DataError(f"{path} has no entry of a dictionary: is it gcide.dict.dz of Debian's dict-gcide?")
    yield "\n".join(document)


def glosses(source: Path | None) -> Iterator[str]:
    """What WordNet says of its 117,659 meanings: definitions and examples, 1.7 million words and marks; a document a
    meaning, in the order of the files data.noun, data.verb, data.adj and data.adv.

    Raises:
        DataError: a file is missing, or is not of WordNet.
    """
    folder = WORDNET if source is None else source
    for name in FILES:
        path = folder / f"data.{name}"
        if not path.is_file():
            raise DataError(f"no {path}: `apt-get install wordnet-base`, or name the folder with --source")
        found = [gloss for line in _read(path).splitlines() if (gloss := line.partition(" | ")[2].strip())]
        if not found:
            raise DataError(f"{path} has no definitions: is it of WordNet?")
        yield from found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as cause:
        raise DataError(f"{path} is not UTF-8 text ({cause.reason} at byte {cause.start})") from cause
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause.strerror}: name UTF-8 text files, or folders of *.txt") from cause
