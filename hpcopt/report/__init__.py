"""Reading what jobs wrote: ``python -m hpcopt.report RUN ...``. Needs neither torch nor MPI."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.report.read import Run, read_run

__all__ = ["Run", "read_run"]

__getattr__ = lazily(
    __name__,
    {"Run": "read", "read_run": "read"},
)
