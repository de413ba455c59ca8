"""Text is UTF-8 in every file that hpcopt reads or writes, whatever the locale says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcopt

PACKAGE = Path(hpcopt.__file__).parent
TEXT = {"read_text", "write_text"}


def by_the_locale(source: str) -> Iterator[int]:
    """Lines that open a file as text and leave its encoding to the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        match node.func:
            case ast.Attribute(attr=name) if name in TEXT:
                yield node.lineno
            case ast.Attribute(value=owner, attr="open") if not (isinstance(owner, ast.Name) and owner.id in NO_FILES):
                if not is_binary(node.args[:1]):
                    yield node.lineno
            case ast.Name(id="open") if not is_binary(node.args[1:2]):
                yield node.lineno


NO_FILES = {"os", "Image", "lz4", "webbrowser"}


def is_binary(mode: list[ast.expr]) -> bool:
    return bool(mode) and isinstance(mode[0], ast.Constant) and "b" in str(mode[0].value)


def test_such_lines_are_found():
    found = by_the_locale("p.read_text()\np.open('rb')\np.open('w')\nopen(p)\nopen(p, 'wb')\np.open(encoding='utf-8')")
    assert list(found) == [1, 3, 4]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_text_file_is_utf8(path):
    assert list(by_the_locale(path.read_text(encoding="utf-8"))) == []
