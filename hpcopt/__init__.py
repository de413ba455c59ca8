"""hpcopt: distributed optimizers and compressed MPI collectives for training networks as batch jobs."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

__version__ = "0.1.0"
__all__ = ["Kaisa", "LocalSteps", "Replicator", "Session", "open_run"]

if TYPE_CHECKING:
    from hpcopt.replicator import Replicator
    from hpcopt.runs import open_run
    from hpcopt.session import Session
    from hpcopt.solvers.kaisa.preconditioner import Kaisa
    from hpcopt.solvers.local.steps import LocalSteps

__getattr__ = lazily(  # so that `import hpcopt` alone stays light
    __name__,
    {
        "Kaisa": "solvers.kaisa.preconditioner",
        "LocalSteps": "solvers.local.steps",
        "Replicator": "replicator",
        "Session": "session",
        "open_run": "runs",
    },
)
