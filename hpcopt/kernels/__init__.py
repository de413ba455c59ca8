"""The codecs' inner loops, in numba; each has a slow numpy twin in the tests.

numba costs .7 s and 65 MB a rank, so its modules load at their first use: write ``from hpcopt import kernels`` and
``kernels.levels.encode(...)``.

Compiled code is cached: in ``NUMBA_CACHE_DIR`` if that is set, else beside these files, else (a read-only
installation) in the user's cache directory. The cache knows the CPU's name, so one directory may serve unlike nodes;
a node-local one starts fastest. A change of any source here renews it: numba by itself looks only at the file that a
function stands in, and would keep the old code of what that inlines from others. ``Codec.warm`` compiles what a codec
needs: call it on one rank a node first, then on the others, before anything is timed.

A constant that one loop hands to another has a type of its own, for which numba compiles the other once more. So it is
written ``np.int64(1)`` or ``np.bool_(True)``, also where a variable begins, whose type is that of any value then.

Every loop releases the GIL and takes flat, contiguous, aligned arrays. None uses ``fastmath``: sums run in a fixed
order, so the bytes do not depend on the width of the machine's vectors.
"""

import sys
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcopt.kernels import (
        ballots,
        bfloat16,
        bins,
        bits,
        chunks,
        grid,
        levels,
        mixed,
        powers,
        rows,
        sampling,
        select,
        sparse,
    )

__all__ = [
    "ballots",
    "bfloat16",
    "bins",
    "bits",
    "chunks",
    "grid",
    "levels",
    "mixed",
    "powers",
    "rows",
    "sampling",
    "select",
    "sparse",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        module = import_module(f"{__name__}.{name}")
        _cache_by_all_sources()
        return module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def compiled() -> int:
    """Loops that this process has compiled, or is compiling, since the cache did not have them."""
    return sum(sum(loop.stats.cache_misses.values()) for loop in _loops() if hasattr(loop, "stats"))


def _cache_by_all_sources() -> None:
    for loop in _loops():
        file = getattr(getattr(loop, "_cache", None), "_cache_file", None)
        if file is not None:
            file._source_stamp = _sources()


def _loops() -> list[Any]:
    """What stands in the modules that are loaded, each once; other threads may be loading some."""
    modules = [module for name, module in sys.modules.copy().items() if name.startswith(f"{__name__}.")]
    return list({id(loop): loop for module in modules for loop in vars(module).copy().values()}.values())


@cache
def _sources() -> bytes:
    return sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).digest()
