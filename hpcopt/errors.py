"""What can go wrong, by who can mend it, and the exit code that says so.

========  =====================================================================================
exit      meaning
========  =====================================================================================
0         done: the job reached its steps, its target or its time budget's last planned step
1         a bug in hpcopt or in the user's own code: the traceback names the rank and the host
2         bad input: job, data, checkpoint, run directory or launch; the message says what to do
3         the training diverged: the loss or a gradient is no longer finite
70        another rank failed or cannot be reached, or the file system cannot
85        checkpointed before the end (signal or time budget): submit the same command again
130       interrupted (Ctrl-C, the signal INT): all ranks end at once, without a checkpoint
========  =====================================================================================
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_PEER = 70
EXIT_REQUEUE = 85
EXIT_INTERRUPTED = 130


def printable(text: str) -> str:
    """A text of anybody's for a terminal, which obeys none of it: escape codes are shown, and each byte of a name that
    is no character (a lone surrogate, which no encoding takes) is a ``?``.
    """
    known = text.encode(errors="replace").decode()
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in known)


class HpcoptError(Exception):
    """A failure that its message explains to the person who ran the job, without a traceback."""

    exit_code = EXIT_BAD_INPUT
    on_every_rank = False  # whether all ranks raise it at the same place, so that none waits for this one

    def __str__(self) -> str:
        """The message; what it quotes of files and command lines reaches no terminal as an escape code."""
        return printable(super().__str__())

    def everywhere(self) -> Self:
        """Mark an error that all ranks raise here, from the same facts; give it back for ``raise``."""
        self.on_every_rank = True
        return self


class JobError(HpcoptError):
    """The job file, a ``--set`` or a command-line option is wrong, or asks for what cannot be done."""


class DataError(HpcoptError):
    """Training data is missing, damaged or does not fit the job."""


class CheckpointError(HpcoptError):
    """A checkpoint is damaged or does not fit the job."""


class MetricsError(HpcoptError):
    """The metrics of a run are missing, damaged or of another version."""


class LaunchError(HpcoptError):
    """The ranks that came up are not the ranks that were asked for."""


class UnsupportedError(HpcoptError):
    """A transport, codec or collective was asked for what it cannot do."""


class PeerError(HpcoptError):
    """Another rank failed, or did something else than this one in the same collective."""

    exit_code = EXIT_PEER


class DivergedError(HpcoptError):
    """The loss is no longer finite."""

    exit_code = EXIT_DIVERGED
    on_every_rank = True  # the loss is agreed by all


class NonFiniteError(HpcoptError):
    """A tensor holds Inf, NaN or values too large where they cannot be carried on."""

    exit_code = EXIT_DIVERGED


class PayloadError(HpcoptError):
    """A codec's payload is cut short, damaged or made with other settings."""


def exit_code_of(error: BaseException) -> int:
    """The process's exit code for an error that nobody has caught."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code:
        return error.code
    return error.exit_code if isinstance(error, HpcoptError) else EXIT_BUG


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Take up a saved state in the body; one that lacks something, or has it of another shape, is a CheckpointError.

    Args:
        what: what it must fit, for the message.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else f"{error}"
        raise CheckpointError(f"the checkpoint does not fit {what}: {reason}") from error
