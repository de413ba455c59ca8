"""Locks on ranges of a file's bytes, which the operating system takes back when their owner ends, however.

They are those of an open file description (``F_OFD_SETLK``): two that open a file for themselves exclude each other,
also as threads of one process, and closing another descriptor of the file loses nothing. Shared file systems carry them
from host to host, as they do POSIX's. A range may lie beyond the file's end.
"""

import errno
import fcntl
import os
import struct

from hpcopt.errors import UnsupportedError

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_HELD = (errno.EACCES, errno.EAGAIN)


def lock(descriptor: int, start: int, length: int = 1, *, wait: bool = False) -> bool:
    """Take a range for oneself; gives whether it is ours.

    Args:
        descriptor: of the file, open to write.
        start, length: bytes.
        wait: until nobody else has any of it.

    Raises:
        UnsupportedError: the file system has no such locks.
    """
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(descriptor, command, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise UnsupportedError(
            f"the file system has no locks on ranges of a file ({error.strerror}): use a folder on one that has"
        ) from error
    return True


def unlock(descriptor: int, start: int, length: int = 1) -> None:
    """Let a range go."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))
