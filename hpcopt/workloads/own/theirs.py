"""A call of somebody's own code: what it raises becomes a sentence with the place where it stands."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcopt.errors import DataError, HpcoptError

_HOUSE = str(Path(__file__).parents[2])


@contextmanager
def theirs(what: str, kind: type[HpcoptError] = DataError) -> Iterator[None]:
    """Around a call of somebody's code.

    Args:
        what: was called, for the message.
        kind: of the error that whatever it raises becomes.
    """
    try:
        yield
    except HpcoptError:
        raise
    except (Exception, SystemExit) as error:
        raise kind(f"{what} raised {type(error).__name__}: {error} ({place_of(error)})") from error


def place_of(error: BaseException) -> str:
    """The file and line that somebody has to look at: the last one that is neither ours nor a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_HOUSE) and "site-packages" not in f.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
