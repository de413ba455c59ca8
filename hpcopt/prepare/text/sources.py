"""Texts that a machine has or a package brings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hpcopt.prepare.dataset import DataSet
from hpcopt.prepare.text import documents
from hpcopt.prepare.text.levels import Level
from hpcopt.prepare.text.make import Tokens, make


@dataclass(frozen=True)
class Source:
    """A text.

    Attributes:
        documents: from where it lies, or where it is installed.
        level: of its tokens, if nobody says another.
        title, license: of it.
    """

    documents: Callable[[Path | None], Iterable[str]]
    level: Level
    title: str
    license: str

    def read(self, source: Path | None, tokens: Tokens | None = None, every: int = 1) -> DataSet:
        """The tokens of every so many-th document.

        Raises:
            DataError: it is not there; the message says what to install.
        """
        documents = islice(self.documents(source), 0, None, every)
        return make(documents, tokens or Tokens(self.level), title=self.title, license=self.license)


TEXTS = {
    "manual": Source(lambda _: documents.topics(), "byte", "Topics of Python's manual", "PSF-2.0"),
    "python-doc": Source(documents.python_sources, "word", "Sources of Python's documentation", "PSF-2.0"),
    "gcide": Source(
        documents.gcide, "word", "The Collaborative International Dictionary of English", "GPL-2.0-or-later"
    ),
    "glosses": Source(documents.glosses, "word", "Definitions of WordNet 3.0", "WordNet 3.0 license"),
}
