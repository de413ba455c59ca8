"""The page: in a browser, without one, and for who does not see it."""

import re
import zlib

import numpy as np
import pytest

from hpcopt.analysis.explain.command import explain
from hpcopt.analysis.explain.judged import Judged, judged, table
from hpcopt.analysis.explain.overlay import in_words, overlay, plain, png, strength
from hpcopt.analysis.explain.results import read_explanations
from hpcopt.comm.world import alone
from hpcopt.errors import DataError
from hpcopt.explain import parser
from tests.report.test_html import DARK, LIGHT, opened

pytest.importorskip("captum")
pytest.importorskip("quantus")


@pytest.fixture
def made(networks):
    def make(name: str, *more: str) -> str:
        inputs = [f"small_networks:{name}", f"--weights={name}.safetensors", f"--inputs={name}.npy", "--rows=0:2"]
        options = parser().parse_args([*inputs, "--samples=8", "--scored=2", "--out=e.h5", "--html=page.html", *more])
        assert explain(options, alone(), lambda: False) == 0
        return (networks / "page.html").read_text()

    return make


@pytest.mark.parametrize(("scheme", "ink"), [(LIGHT, "rgb(29, 39, 51)"), (DARK, "rgb(228, 233, 238)")])
def test_pictures_in_a_browser(made, networks, scheme, ink):
    made("Net", "--methods=saliency,grad_cam", "--pictures=logit")
    dom, console = opened(networks / "page.html", scheme)
    assert console == ""
    assert dom.count("main-svg") >= 2
    assert f"fill: {ink}" in dom
    body = dom[dom.index("<body") :]
    pictures = re.findall(r"<img [^>]*>", body)
    assert len(pictures) == 2 * 3 + 4
    assert all(re.search(r'alt="[^"]{8,}"', picture) for picture in pictures)
    assert 'alt="most of class 3"' in body
    assert "random ranking" in body


def test_tokens_have_colours_and_are_told(made):
    text = made("Words", "--methods=integrated")
    assert len(re.findall("class='token( against)?'", text)) == 12
    assert len(re.findall(r"most for the class: [\d, ]+\. ", text)) == 2


def test_columns_are_a_table(made):
    text = made("Columns", "--methods=integrated,lime")
    assert "<th>column</th><th>value</th><th>integrated</th><th>lime</th>" in text


def test_the_page_needs_nothing_else(made):
    text = made("Columns", "--methods=saliency")
    own = text[: text.index("<script>")] + text[text.rindex("<script>") :]
    assert not re.search(r"""(src|href)=["'](?!data:)""", own)


def test_the_table_says_who_beats_random(made):
    made("Columns", "--methods=integrated,saliency")
    found = read_explanations("e.h5")
    rows = table(found)
    assert {row[0] for row in rows} == {"method", "integrated", "saliency", "random ranking"}
    assert judged(found, "integrated").seconds_per_input > 0
    known = {"deletion": 0.1, "insertion": 0.9, "scores": {}, "seconds_per_input": 1.0}
    said = {
        "yes": ((0.2, 0.05), (0.2, 0.05)),
        "deletion alone": ((0.2, 0.05), (0.2, 0.15)),
        "insertion alone": ((-0.2, 0.05), (0.2, 0.05)),
        "no": ((0.0, 0.0), (0.1, 0.05)),
    }
    for word, (deletion, insertion) in said.items():
        assert Judged(**known, better_deletion=deletion, better_insertion=insertion).beats_random == word


def test_a_png_is_what_it_should_be():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    file = png(pixels)
    data = file[file.index(b"IDAT") + 4 : file.index(b"IEND") - 8]
    assert zlib.decompress(data) == b"\0" + bytes(range(12)) + b"\0" + bytes(range(12, 24))


def test_overlays_are_red_for_and_blue_against():
    counts = np.array([[[1.0, -1.0], [0.0, 0.0]]])
    red, blue = overlay(np.zeros((1, 2, 2)), counts)[0]
    assert red[0] > red[2] and blue[2] > blue[0]
    assert plain(np.full((1, 2, 2), 3.0)).max() == 0
    assert np.isfinite(strength(np.zeros((2, 2)))).all()


def test_where_it_counts_is_said():
    counts = np.zeros((1, 6, 6))
    assert in_words(counts) == "nothing counts for the class"
    counts[0, 5, 0] = 2
    assert in_words(counts) == "counts for the class around the lower left, half of it on 3% of the pixels"


def test_what_is_no_explanation_is_said(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        read_explanations(tmp_path / "none.h5")
