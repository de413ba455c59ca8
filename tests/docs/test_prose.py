"""Pages read well: a paragraph has at most five lines of 100 columns, and a page begins with a sentence."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.launching import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ITEM = re.compile(r"\s*(- |\* |\d+\. )")
OTHER = re.compile(r"\s*([|#<]|!\[|:::)|    ")  # tables, headings, comments, pictures, the API, code


def paragraphs(text: str) -> list[list[str]]:
    """Runs of lines of prose; each item of a list is one."""
    found: list[list[str]] = [[]]
    for line in re.sub(r"^\s*```.*?^\s*```$", "", text, flags=re.M | re.S).splitlines():
        if not line.strip() or (OTHER.match(line) and not (found[-1] and line.startswith("    "))):
            found.append([])
        elif ITEM.match(line):
            found.append([line])
        else:
            found[-1].append(line)
    return [lines for lines in found if lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_paragraphs_are_short(page: Path):
    for lines in paragraphs(page.read_text()):
        assert len(lines) <= 5 and max(map(len, lines)) <= 100, "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_begins_with_what_its_reader_can_do(page: Path):
    first = re.sub(r"^# .*\n+", "", page.read_text()).split("\n", 1)[0]
    assert re.match(r"You |hpcopt ", first), first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_stands_between_fences_of_their_own(page: Path):
    text = page.read_text()
    joined = [line for line in text.splitlines() if "```" in line and not re.fullmatch(r"\s*```[\w-]*", line)]
    assert not joined and len(re.findall("```", text)) % 2 == 0, joined
    for block in re.findall(r"^```toml\n(.*?)^```$", text, flags=re.M | re.S):
        tomllib.loads(block)


def test_long_paragraphs_are_found():
    item = "- an item\n  of two lines\n- another\n"
    text = f"# Head\n\none\ntwo\n\n```\ncode\nmore\n```\n\n{item}\n| table |\n\n    code\n"
    assert [len(lines) for lines in paragraphs(text)] == [2, 2, 1]
