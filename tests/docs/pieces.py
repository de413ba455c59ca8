"""The code of a page, to be run as it stands there."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


@contextmanager
def importable(page: str, heading: str, module: str, folder: Path) -> Iterator[list[str]]:
    """A section's pieces of Python, then its job; the first piece is the module, which can be imported meanwhile."""
    section = (DOCS / page).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    python = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    job = re.search(r"(?:^    .*\n)+", section.replace(python[0], ""), flags=re.MULTILINE)
    assert job is not None
    (folder / f"{module}.py").write_text(python[0])
    sys.path.insert(0, str(folder))
    try:
        yield [*python, re.sub(r"^    ", "", job[0], flags=re.MULTILINE)]
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module, None)
