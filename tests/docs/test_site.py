"""The site knows every page and every public name, and the examples of its reference run."""

import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROOMS = ["hpcopt", *(f"hpcopt.{path.parent.name}" for path in sorted((ROOT / "hpcopt").glob("*/__init__.py")))]
PUBLIC = [room for room in ROOMS if hasattr(importlib.import_module(room), "__all__") and room != "hpcopt.kernels"]
FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
MODULES = sorted(p for p in (ROOT / "hpcopt").rglob("*.py") if re.search(r"^\s*>>> ", p.read_text(), re.M))


def navigation(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict | list):
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation(inner)


def example(page: Path) -> str:
    """The runnable part of a page of the reference."""
    return "\n".join(re.findall(r"```pycon\n(.*?)```", page.read_text(), re.S))


def run(text: str, name: str) -> int:
    """Run the examples of a text; give how many there were."""
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    told: list[str] = []
    runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)
    return runner.tries


def test_every_page_is_in_the_navigation():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert sorted(navigation(settings["nav"])) == sorted(pages), "mkdocs.yml has the navigation"


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_has_an_entry_and_stands_in_an_example(room):
    page = DOCS / "reference/api" / f"{room.rsplit('.', 1)[-1]}.md"
    text, shown, module = page.read_text(), example(page), importlib.import_module(room)
    assert re.search(rf"^::: {room}$", text, re.M)
    for name in module.__all__:
        assert re.search(rf"\b{name}\b", shown), f"{page} shows no use of {name}"
        value = getattr(module, name)
        told = (inspect.isclass(value) or inspect.isfunction(value)) and f"{room}.{name}" not in sys.modules
        assert told or re.search(rf"^::: {room}\.[\w.]*{name}$", text, re.M), f"{page} needs an entry for {name} itself"


@pytest.mark.parametrize("page", sorted((DOCS / "reference/api").glob("*.md")), ids=lambda page: page.stem)
def test_the_examples_of_the_reference_run(page):
    assert run(example(page), page.name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_examples_in_docstrings_run(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, name) if test.examples]
    assert tests
    for test in tests:
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        told: list[str] = []
        runner.run(test, out=told.append)
        assert runner.failures == 0, "".join(told)
