"""Commands, run in this process within a limit, and what may come of them."""

import contextlib
import faulthandler
import io
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpcopt import checkpoint, train
from hpcopt.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_DIVERGED, EXIT_DONE, EXIT_PEER, EXIT_REQUEUE
from hpcopt.report import __main__ as report
from tests.launching import PATIENCE_S

Main = Callable[[list[str]], int]
COMMANDS: dict[str, Main] = {"train": train.main, "report": report.main, "checkpoint": checkpoint.main}
TABLE = {EXIT_DONE, EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_PEER, EXIT_REQUEUE}
LIMIT_S = PATIENCE_S  # thousands of times what any of these commands takes: only what hangs comes here
MEMORY_BYTES = 3 << 30  # beyond what the process has already
PAGE_BYTES = resource.getpagesize()
ESCAPE = "\x1b"


class OverranError(BaseException):
    """A command did not end by itself."""


@dataclass(frozen=True)
class Outcome:
    """What became of a command: its exit code, all that it printed, and what got past its ``main``."""

    command: str
    exit_code: int | None
    output: str
    escaped: str = ""

    def require_sentence(self, *, codes: Collection[int] = TABLE, theirs: Path | None = None) -> "Outcome":
        """Fail, unless it ended as a command may: by an exit code of the table, and with a traceback only where the
        code of a plug-in, in a file of its own, is in it.
        """
        blamed = theirs is not None and f'File "{theirs}", line' in self.output
        allowed = {*codes, EXIT_BUG} if blamed else set(codes)
        account = f"{self.command} gave {self.exit_code}\n{self.output[-6000:]}\n{self.escaped}"
        assert not self.escaped, account
        assert self.exit_code in allowed, account
        assert blamed or "Traceback" not in self.output, account
        assert ESCAPE not in self.output, account
        assert self.exit_code == EXIT_DONE or self.output.strip(), f"{account}: not a word"
        return self


def run(command: str, *arguments: str) -> Outcome:
    """Run a command to its end, or to its limit of time or memory."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    code, escaped = None, ""
    with limits(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = COMMANDS[command](list(arguments))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else EXIT_BUG
        except BaseException:
            escaped = traceback.format_exc()
    text = printed.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    return Outcome(" ".join([command, *arguments]), code, text, escaped)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Bounds of time and memory around a command. What hangs in Python or in the kernel raises; what hangs elsewhere
    ends the process, with all its stacks.
    """

    def overran(_number: int, _frame: FrameType | None) -> None:
        raise OverranError(f"still running after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, overran)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY_BYTES, memory[1]))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    faulthandler.dump_traceback_later(2 * LIMIT_S, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what one example makes, under the current one. A training that failed may still be writing a
    checkpoint into it, in a thread that ends with the process.
    """
    with tempfile.TemporaryDirectory(dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
