"""The job reference in docs/ is the one that the schema gives."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date():
    generated = runpy.run_path(str(DOCS / "job_reference.py"))["reference"]()
    assert (DOCS / "reference/job.md").read_text() == generated, "run: python docs/job_reference.py"
