"""Grids of small runs: points dealt over ranks and jobs, one table, nothing lost or done twice.

``Study`` says what is asked, ``run_study`` does it, ``read_study`` gives the table.
"""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.study.folder import read_study
    from hpcopt.study.study_file import Study, read_study_file
    from hpcopt.study.table import Table
    from hpcopt.study.work import run_study

__all__ = ["Study", "Table", "read_study", "read_study_file", "run_study"]

__getattr__ = lazily(
    __name__,
    {
        "Study": "study_file",
        "Table": "table",
        "read_study": "folder",
        "read_study_file": "study_file",
        "run_study": "work",
    },
)
