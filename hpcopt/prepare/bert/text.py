"""Documents, each a list of sentences, from text files or from the English that every Python carries."""

import ast
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcopt.errors import DataError

Document = list[str]  # its sentences

_SENTENCE_END = re.compile(r"""([.!?]["')\]]*) (?=["'(\[]?[A-Z0-9])""")
_NOT_ENGLISH = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}


def documents(paths: Sequence[Path]) -> Iterator[Document]:
    """The documents of text files, and of all ``*.txt`` in folders; with no path, Python's own English.

    A document ends at an empty line. A line may hold one sentence, as the published tools want it, or several.

    Raises:
        DataError: a path is missing, is not UTF-8, or there is no sentence in any of them.
    """
    found = False
    for document in _from_files(paths) if paths else python_english():
        found = True
        yield document
    if not found:
        raise DataError(f"no sentence in {', '.join(map(str, paths))}: name UTF-8 text files with --text")


def _from_files(paths: Sequence[Path]) -> Iterator[Document]:
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist: name UTF-8 text files, or folders of *.txt, with --text")
        for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
            try:
                with file.open(encoding="utf-8") as lines:
                    yield from _blocks(lines)
            except UnicodeDecodeError as cause:
                raise DataError(f"{file} is not UTF-8 text ({cause.reason} at byte {cause.start})") from cause
            except OSError as cause:
                raise DataError(f"cannot read {file}: {cause.strerror}") from cause


def _blocks(lines: Iterator[str]) -> Iterator[Document]:
    sentences: Document = []
    for line in lines:
        if line.strip():
            sentences += split_sentences(line)
        elif sentences:
            yield sentences
            sentences = []
    if sentences:
        yield sentences


def split_sentences(text: str) -> Document:
    """The sentences of a running text, white space made single."""
    return _SENTENCE_END.sub(r"\1\n", " ".join(text.split())).splitlines()


def python_english() -> Iterator[Document]:
    """Python's manual (pydoc's topics), a document a topic, then the docstrings of its library, a document a module.

    The modules are parsed and not imported. Which text this is depends on the version of Python.
    """
    from pydoc_data.topics import topics

    for _, topic in sorted(topics.items()):
        yield from _prose(topic)
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not _NOT_ENGLISH.intersection(path.relative_to(library).parts):
            yield from _prose("\n\n".join(_docstrings(path)))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        scopes: list[Any] = [ast.parse(path.read_bytes())]
    except SyntaxError:  # the library has files for other versions
        return
    for scope in scopes:
        yield ast.get_docstring(scope) or ""
        scopes += [
            node for node in scope.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]


def _prose(text: str) -> Iterator[Document]:
    """The paragraphs of a text that are sentences and not code, tables or headings, as one document."""
    paragraphs = re.split(r"\n\s*\n", text)
    sentences = [s for p in paragraphs if _is_prose(p) for s in split_sentences(p)]
    if sentences:
        yield sentences


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    plain = sum(word.strip("\"'().,;:!?").isalpha() for word in words)
    return len(words) >= 6 and plain >= 0.75 * len(words) and paragraph.rstrip()[-1] in ".!?:)\"'"
