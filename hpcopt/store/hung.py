"""File systems that do not answer: what is waited for is named, and not waited for for ever.

A call to a hung file system does not return and cannot be broken off from inside. So whoever touches files notes that,
and a thread of its own looks at the notes.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

LOOKS = 4  # in the time after which something is said

_TOUCHED: dict[int, tuple[Path, float]] = {}  # by thread: what it waits for, and since when, in monotonic seconds


@contextmanager
def touching(path: Path) -> Iterator[None]:
    """Note that this thread reads or writes a file or a folder while the body runs; the outermost note counts."""
    thread = threading.get_ident()
    if thread in _TOUCHED:
        yield
        return
    _TOUCHED[thread] = path, time.monotonic()
    try:
        yield
    finally:
        del _TOUCHED[thread]


class FileWatch:
    """While entered, says which file this process waits for, and gives up if it waits too long."""

    def __init__(
        self, after_s: float, limit_s: float, say: Callable[[str], None], give_up: Callable[[str], None]
    ) -> None:
        """Get ready.

        Args:
            after_s: seconds after which ``say`` is called, once for each wait.
            limit_s: seconds after which ``give_up`` is called; it ends the job.
            say, give_up: take a message; both are called in another thread.
        """
        self._after_s, self._limit_s, self._say, self._give_up = after_s, limit_s, say, give_up
        self._said: set[tuple[Path, float]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="file watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(min(self._after_s, self._limit_s) / LOOKS):
            now_s = time.monotonic()
            for path, since_s in list(_TOUCHED.values()):
                waited_s = now_s - since_s
                message = f"the file system has not answered for {waited_s:.1f} s: {path}"
                if waited_s > self._limit_s:
                    self._give_up(message)
                    return
                if waited_s > self._after_s and (path, since_s) not in self._said:
                    self._said.add((path, since_s))
                    self._say(message)
