"""The table in docs/concepts/codecs.md says what the codecs say of themselves, and the page knows every codec."""

import runpy
from pathlib import Path

import pytest

from hpcopt.compress import CodecConfig
from hpcopt.families import CODECS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(DOCS / "codecs_table.py"))


def test_the_table_is_up_to_date(script):
    held = [row[:6] for row in script["table_of"]((DOCS / "concepts/codecs.md").read_text())]
    assert held == script["promises"](), "run: python docs/codecs_table.py"


def test_every_codec_is_in_the_page(script):
    page = (DOCS / "concepts/codecs.md").read_text()
    for name in CODECS.choices(CodecConfig):
        assert f"`{name}`" in page
