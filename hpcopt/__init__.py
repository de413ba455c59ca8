"""hpcopt: distributed optimizers and compressed MPI collectives for training networks as batch jobs."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Kaisa", "Replicator", "open_run"]

if TYPE_CHECKING:
    from hpcopt.replicator import Replicator
    from hpcopt.runs import open_run
    from hpcopt.solvers.kaisa.preconditioner import Kaisa


def __getattr__(name: str) -> Any:  # so that `import hpcopt` alone stays light
    if name == "Kaisa":
        from hpcopt.solvers.kaisa.preconditioner import Kaisa

        return Kaisa
    if name == "Replicator":
        from hpcopt.replicator import Replicator

        return Replicator
    if name == "open_run":
        from hpcopt.runs import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
