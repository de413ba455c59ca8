"""The page in a real browser: all plots drawn, no word of complaint, without network or server, light and dark."""

import re

import pytest

from hpcopt.report.__main__ import main
from hpcopt.report.figures import figures_of
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from tests.browser import DARK, LIGHT, opened
from tests.report.conftest import append, make_run
from tests.report.test_scaling import run_of


@pytest.fixture
def runs(run_dir, tmp_path):
    for p in (1, 2, 4):
        run_of(tmp_path / f"p{p}", p, 1 / p, 64)
    make_run(tmp_path / "labelled", oversubscribed=True, title="<b>&")
    return [run_dir, tmp_path / "labelled", *(tmp_path / f"p{p}" for p in (1, 2, 4))]


@pytest.mark.parametrize(("scheme", "paper"), [(LIGHT, "rgb(29, 39, 51)"), (DARK, "rgb(228, 233, 238)")])
def test_the_page_in_a_browser(runs, tmp_path, scheme, paper):
    assert main([*map(str, runs), "--html", str(tmp_path / "page.html")]) == 0
    dom, console = opened(tmp_path / "page.html", scheme)
    assert console == ""
    figures = figures_of([(run, summarise(run)) for run in map(read_run, runs)])
    assert {"strong-time", "strong-efficiency", "karp-flatt"} < {figure.name for figure in figures}
    body = dom[dom.index("<body") :]
    for figure in figures:
        plot = body[body.index(f'id="{figure.name}"') :]
        plot = plot[: plot.index("</section>")]
        assert "main-svg" in plot
        assert 'role="img" aria-label=' in body[body.index(f'id="{figure.name}"') :][:200]
        assert re.search(r'class="(trace|bars|points|hm|boxes|scatterlayer)', plot)
        assert figure.definition.split("“")[0][:40] in plot
    assert f"fill: {paper}" in body
    assert "&lt;b&gt;&amp;" in dom


def test_the_page_needs_nothing_else(runs, tmp_path):
    main([str(runs[0]), "--html", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    own = text[: text.index("<script>")] + text[text.rindex("<script>") :]
    assert not re.search(r"""(src|href)=["'](?!data:)""", own)
    assert "<!--" not in own.replace("<!doctype html>", "")


def test_a_page_of_a_run_under_way_loads_itself_again_until_the_run_has_ended(tmp_path, monkeypatch):
    """What happens between two looks happens while the command sleeps."""
    file, page = make_run(tmp_path / "known", steps=20), tmp_path / "page.html"
    told = []

    def between(seconds: float) -> None:
        told.append(page.read_text())
        if len(told) == 1:
            append(file, 20, 20, 3)
        else:
            file.finish("all steps done", 0)

    monkeypatch.setattr("hpcopt.report.__main__.time.sleep", between)
    assert main([str(tmp_path / "known"), "--html", str(page), "--follow"]) == 0
    told.append(page.read_text())
    assert ['http-equiv="refresh" content="5"' in text for text in told] == [True, True, False]
    assert len({text[text.rindex("const plots") :] for text in told}) >= 2
    main([str(tmp_path / "known"), "--html", str(page)])
    assert "http-equiv" not in page.read_text().split("<style>")[0]


def test_oversubscribed_runs_are_marked_and_not_drawn_as_scaling(tmp_path):
    for p in (1, 2):
        run_of(tmp_path / f"p{p}", p, 1 / p, 64, oversubscribed=True)
    main([str(tmp_path / "p1"), str(tmp_path / "p2"), "--html", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "* oversubscribed" in text
    assert "strong-time" not in text
