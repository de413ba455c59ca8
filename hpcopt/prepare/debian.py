"""The packages of a Debian system as a graph, from the lists that apt keeps: an edge where one depends on the other;
the class of a package is its section, one of the 20 that have most.

A package's features are the words and tags of its description without the parts of its name. Packages built of one
source are in the same part, and edges between them are left out: both would give the answer away.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hpcopt.errors import DataError
from hpcopt.prepare.dataset import DataSet
from hpcopt.prepare.graph import graph

FOLDER = Path("/var/lib/apt/lists")
CLASSES = 20
RELATIONS = ("Depends", "Pre-Depends", "Recommends")
_WORD, _TAG = re.compile(r"[a-z]{3,}"), re.compile(r"[a-z0-9+-]+::[a-z0-9:+-]+")
_APT = "/usr/lib/apt/apt-helper"

Package = Mapping[str, str]  # fields of a stanza by name


def read(source: Path | None) -> DataSet:
    """The graph of all files ``*_Packages*`` in a folder.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    folder = FOLDER if source is None else source
    packages: dict[str, Package] = {}
    for path in sorted(folder.glob("*_Packages*")):
        packages |= {p["Package"]: p for p in stanzas(_text(path)) if "Package" in p}
    if not packages:
        raise DataError(f"no package lists in {folder}: run `apt-get update`, or name the folder with --source")
    number = {name: n for n, name in enumerate(packages)}
    sources = [source_of(p) for p in packages.values()]
    pairs = [
        (number[name], number[other])
        for name, p in packages.items()
        for other in depends(p)
        if other in number and sources[number[other]] != sources[number[name]]
    ]
    sections = [p.get("Section", "").rpartition("/")[2] for p in packages.values()]
    classes = [section for section, _ in Counter(filter(None, sections)).most_common(CLASSES)]
    return graph(
        [words_of(p) for p in packages.values()],
        np.array([classes.index(section) if section in classes else -1 for section in sections]),
        np.array(pairs, np.int64).reshape(-1, 2),
        sources,
        classes,
        title="Packages of a Debian system and their dependencies",
        source=", ".join(path.name for path in sorted(folder.glob("*_Packages*"))),
    )


def stanzas(text: str) -> Iterator[Package]:
    """The stanzas of a list of packages: fields, whose continued lines begin with a space."""
    for stanza in text.split("\n\n"):
        lines = stanza.replace("\n ", " ").splitlines()
        yield {key: value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}


def source_of(package: Package) -> str:
    """The source that a package is built of, without its version."""
    return package.get("Source", package["Package"]).split(" ")[0]


def depends(package: Package) -> list[str]:
    """The packages that one depends on; of alternatives the first.

    >>> depends({"Depends": "libc6 (>= 2.34), a:any | b", "Recommends": "c"})
    ['libc6', 'a', 'c']
    """
    wanted = [clause for field in RELATIONS for clause in package.get(field, "").split(",") if clause.strip()]
    return [re.split(r"[ (:|]", clause.strip())[0] for clause in wanted]


def words_of(package: Package) -> list[str]:
    """Words of the description and tags, without what is part of the package's name or its source's."""
    own = set(re.split(r"[^a-z0-9]+", f"{package['Package']} {source_of(package)}"))
    found = _WORD.findall(package.get("Description", "").lower()) + _TAG.findall(package.get("Tag", ""))
    return [word for word in found if not own & set(re.split(r"[^a-z0-9]+", word))]


def _text(path: Path) -> str:
    """The text of a list, which apt may have compressed in one of half a dozen ways."""
    try:
        if path.suffix == "":
            return path.read_text(encoding="utf-8", errors="replace")
        done = subprocess.run([_APT, "cat-file", str(path)], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as cause:
        raise DataError(f"{path} cannot be read ({cause}): run `apt-get update` again") from cause
    return done.stdout.decode(errors="replace")
