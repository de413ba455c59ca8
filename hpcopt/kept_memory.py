"""Keep memory that is given back in the process, where the next step finds it.

A step makes the tensors that the last one has let go. glibc, the C library of most Linux systems, returns memory at the
end of its heap to the system in between; the next step gets it anew, page by page, each page filled with zeros by the
system. A run of the training command changes this once it is set up: every step brings memory to its highest mark, so
that little is lost by keeping it.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 32 << 20  # bytes: of the blocks that may come from the heap, the most that glibc takes


def keep_memory() -> None:
    """Let glibc keep what it has, and take blocks of up to 32 MiB from its heap. Under another C library, or where the
    environment has settings of glibc's own (``MALLOC_...``, ``GLIBC_TUNABLES``), nothing changes.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)  # else the next line would leave it at 128 KiB, whatever was learned
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
