"""WordNet 3.0 as a graph: 117,659 synsets, an edge for each relation between two of them; the class of a synset is the
lexicographers' file that it stands in, such as "noun.animal" (Fellbaum 1998). Debian packages it as wordnet-base.

A synset's features are the words of its gloss without its own lemmas, which would give the answer away. Synsets whose
glosses have the same words are in the same part.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcopt.errors import DataError
from hpcopt.prepare.dataset import DataSet
from hpcopt.prepare.graph import graph

FOLDER = Path("/usr/share/wordnet")
FILES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}  # data.NAME, and the letter that relations call it by
CLASSES = [
    *(f"adj.{name}" for name in ("all", "pert")),
    "adv.all",
    *(
        f"noun.{name}"
        for name in (
            *("Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event"),
            *("feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant"),
            *("possession", "process", "quantity", "relation", "shape", "state", "substance", "time"),
        )
    ),
    *(
        f"verb.{name}"
        for name in (
            *("body", "change", "cognition", "communication", "competition", "consumption", "contact", "creation"),
            *("emotion", "motion", "perception", "possession", "social", "stative", "weather"),
        )
    ),
    "adj.ppl",
]
_WORD = re.compile(r"[a-z]{3,}")


class Synset(NamedTuple):
    """One line of a data file.

    Attributes:
        key: part of speech and place in its file.
        label: number of the lexicographers' file.
        words: of the gloss, without those of the lemmas.
        related: keys at the other ends of its relations.
    """

    key: tuple[str, str]
    label: int
    words: list[str]
    related: list[tuple[str, str]]


def read(source: Path | None) -> DataSet:
    """The graph of the files data.noun, data.verb, data.adj and data.adv.

    Raises:
        DataError: a file is missing or is not of WordNet.
    """
    folder = FOLDER if source is None else source
    synsets = [synset for name in FILES for synset in _file(folder / f"data.{name}")]
    number = {synset.key: n for n, synset in enumerate(synsets)}
    pairs = [(number[s.key], number[other]) for s in synsets for other in s.related if other in number]
    groups = [" ".join(sorted(set(s.words))) or s.key for s in synsets]
    return graph(
        [synset.words for synset in synsets],
        np.array([synset.label for synset in synsets]),
        np.array(pairs, np.int64).reshape(-1, 2),
        groups,
        CLASSES,
        title="WordNet 3.0: synsets and their relations",
        source="WordNet 3.0, files data.noun, data.verb, data.adj, data.adv",
        license="WordNet 3.0 license, Copyright 2006 Princeton University",
    )


def synset(line: str, letter: str) -> Synset:
    """Read a line of a data file.

    Args:
        line: as wndb(5) has it: ``offset file type words (word id)... relations (symbol offset letter ends)...``, then
            ``| gloss``.
        letter: of the file.

    Raises:
        ValueError: it is something else.
    """
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    words, label = int(fields[3], 16), int(fields[1])
    if label >= len(CLASSES):
        raise ValueError(f"lexicographers' file {label}")
    lemmas = {w for lemma in fields[4 : 4 + 2 * words : 2] for w in _WORD.findall(lemma.lower())}
    after = 4 + 2 * words
    relations = fields[after + 1 : after + 1 + 4 * int(fields[after])]
    related = [(kind.replace("s", "a"), place) for place, kind in zip(relations[1::4], relations[2::4], strict=True)]
    found = [word for word in _WORD.findall(gloss.lower()) if word not in lemmas]
    return Synset((letter, fields[0]), label, found, related)


def _file(path: Path) -> Iterator[Synset]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as cause:
        raise DataError(
            f"{path} is missing: `apt-get install wordnet-base`, or name the folder of WordNet's data files with "
            "--source"
        ) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path} cannot be read ({cause}): install it again") from cause
    letter = FILES[path.suffix.removeprefix(".")]
    for number, line in enumerate(lines, 1):
        if line.startswith("  "):  # the license
            continue
        try:
            yield synset(line, letter)
        except (IndexError, ValueError) as cause:
            raise DataError(f"{path}, line {number} is no synset of WordNet ({cause}): install it again") from cause
