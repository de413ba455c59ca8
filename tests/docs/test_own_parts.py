"""The solver in docs/howto/own_parts.md is the one that the tests train, word for word."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pages_solver_is_the_one_that_is_tested():
    page = (ROOT / "docs/howto/own_parts.md").read_text()
    assert (ROOT / "tests/outsider/my_solver.py").read_text() in re.findall(r"```python\n(.*?)```", page, re.S)


SECTIONS = {"body": "actor"}  # of a family that is called otherwise


def test_every_section_of_a_family_is_in_the_table():
    from hpcopt import families
    from hpcopt.family import Family

    page = (ROOT / "docs/howto/own_parts.md").read_text()
    found = [value for value in vars(families).values() if isinstance(value, Family)]
    assert found
    for family in found:
        section = SECTIONS.get(family.what, family.what)
        assert re.search(rf"`\[+(\w+\.)?{section}s?\]+`", page), family.what
