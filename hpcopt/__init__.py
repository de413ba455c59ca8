"""hpcopt: distributed optimizers and compressed MPI collectives for training networks as batch jobs."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Kaisa"]

if TYPE_CHECKING:
    from hpcopt.solvers.kaisa.preconditioner import Kaisa


def __getattr__(name: str) -> Any:  # so that `import hpcopt` alone stays light
    if name == "Kaisa":
        from hpcopt.solvers.kaisa.preconditioner import Kaisa

        return Kaisa
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
