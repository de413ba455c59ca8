"""How far a run has been exported: ``exports.json`` in its directory, so that a second export goes on with the first.

A library's name for the run is kept there too: a run that was requeued stays one run to the library.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from hpcopt.errors import MetricsError
from hpcopt.store.files import read_plain, replace_text

FILE = "exports.json"
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Progress:
    """Of one kind of export.

    Attributes:
        id: the library's name for the run; a new one where the library lets us choose.
        step: newest step that was exported.
        begun: whether there was an export before.
    """

    id: str
    step: int = 0
    begun: bool = False


def progress_of(folder: Path, kind: str) -> Progress:
    """How far the run in a folder has been exported.

    Raises:
        MetricsError: exports.json is damaged.
    """
    known = _read(folder / FILE).get(kind)
    try:
        return Progress(token_hex(4)) if known is None else Progress(str(known["id"]), int(known["step"]), begun=True)
    except (KeyError, TypeError, ValueError) as cause:
        raise MetricsError(_damaged(folder / FILE, cause)) from cause


def note(folder: Path, kind: str, progress: Progress) -> None:
    """Have the next export go on from there."""
    known = {**_read(folder / FILE), kind: {key: v for key, v in asdict(progress).items() if key != "begun"}}
    replace_text(folder / FILE, json.dumps(known, indent=1) + "\n")


def _read(path: Path) -> dict[str, dict[str, str | int]]:
    try:
        found = json.loads(read_plain(path, MOST_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as cause:
        raise MetricsError(_damaged(path, cause)) from cause
    if not isinstance(found, dict):
        raise MetricsError(_damaged(path, ValueError("no object")))
    return found


def _damaged(path: Path, cause: Exception) -> str:
    return f"{path} cannot be read ({cause}): remove it, and exports begin anew, as other runs to their libraries"
