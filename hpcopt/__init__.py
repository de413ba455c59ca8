"""hpcopt: distributed optimizers and compressed MPI collectives for training networks as batch jobs."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Kaisa", "Replicator", "Session", "open_run"]

if TYPE_CHECKING:
    from hpcopt.replicator import Replicator
    from hpcopt.runs import open_run
    from hpcopt.session import Session
    from hpcopt.solvers.kaisa.preconditioner import Kaisa

_PLACES = {
    "Kaisa": "hpcopt.solvers.kaisa.preconditioner",
    "Replicator": "hpcopt.replicator",
    "Session": "hpcopt.session",
    "open_run": "hpcopt.runs",
}


def __getattr__(name: str) -> Any:  # so that `import hpcopt` alone stays light
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
