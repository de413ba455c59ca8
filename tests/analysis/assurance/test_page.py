"""The page: the argument as a tree whose leaves lead to figures and files that are there, in a real browser, wide and
narrow, light and dark.
"""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from hpcopt.analysis.assurance.argument import argument_of, elements
from hpcopt.analysis.assurance.case import Observed, Question, assess
from hpcopt.analysis.assurance.demands import Demands
from hpcopt.analysis.assurance.ground import ground_given, ground_of_run
from hpcopt.analysis.assurance.page import page
from hpcopt.analysis.assurance.plan import make_plan
from hpcopt.assure import main
from hpcopt.runs import open_run
from tests.analysis.assurance.conftest import write_demands
from tests.browser import DARK, LIGHT, opened

FILES = {"run": "run", "demands": "demands.csv", "confidence": "#confidence", "survival": "#survival"}


@pytest.fixture
def demands(tmp_path) -> Demands:
    return Demands(write_demands(tmp_path / "demands.csv", 300, 2))


def states(top) -> dict[str, str]:
    return {element.name: element.state for element in elements(top)}


def test_the_tree_says_what_was_shown_and_what_was_not(run, demands):
    ground = ground_of_run(open_run(run), p_l=0.05)
    plan = make_plan(ground.prior, 0.4, 0.95, allowed=3, network=ground.network)
    case = assess(Question(0.4), ground, demands, plan)
    top = argument_of(case, FILES)
    assert case.holds and top.state == "checked"
    every = list(elements(top))
    names = [element.name for element in every]
    assert len(set(names)) == len(names) and {"G1", "S1", "C1", "J1", "A1", "Sn1"} < set(names)
    assert not any(element.undeveloped for element in every)
    leaves = [element for element in every if element.kind == "solution"]
    assert len(leaves) == 5
    assert {name for leaf in leaves for name, _ in leaf.links} == set(FILES)
    assert all(assumption.text in {element.text for element in every} for assumption in case.assumptions)
    other = assess(Question(0.4), ground_of_run(open_run(run), theta=0.5, p_l=0.05), demands, plan)
    found = {element.text: element.state for element in elements(argument_of(other, {}))}
    assert not other.holds
    assert [state for text, state in found.items() if text.startswith("The plan was not followed")] == ["violated"]


def test_what_nothing_supports_is_undeveloped():
    case = assess(Question(0.01), ground_given(0.9, 0.001), Observed())
    top = argument_of(case, {})
    bare = {element.text.split()[0] for element in elements(top) if element.undeveloped}
    assert (top.state, bare) == ("open", {"Before", "In", "The"})


class Links(HTMLParser):
    """Addresses and names of places in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.hrefs, self.ids = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        found = dict(attrs)
        if tag == "a":
            self.hrefs.add(found["href"])
        if "id" in found:
            self.ids.add(found["id"])


def test_every_link_leads_somewhere(run, demands, tmp_path):
    folder = tmp_path / "a page's folder"
    folder.mkdir()
    plan = tmp_path / "plan.json"
    assert main([str(run), "--bound", "0.4", "--write-plan", str(plan)]) == 0
    asked = [str(run), "--bound", "0.4", "--lowest", "0.05", "--demands", str(demands.path), "--plan", str(plan)]
    assert main([*asked, "--html", str(folder / "page.html")]) in (0, 1)
    links = Links((folder / "page.html").read_text())
    inside = {href for href in links.hrefs if href.startswith("#")}
    assert inside == {"#confidence", "#survival", "#classes"}
    assert {href[1:] for href in inside} <= links.ids
    files = [(folder / unquote(href)).resolve() for href in links.hrefs - inside]
    assert sorted(file.name for file in files) == ["demands.csv", "metrics.h5", "plan.json", "run"]
    assert all(file.exists() for file in files)


@pytest.mark.parametrize(
    ("width", "scheme", "ink"), [(1280, LIGHT, "rgb(29, 39, 51)"), (420, DARK, "rgb(228, 233, 238)")]
)
def test_the_page_in_a_browser(demands, tmp_path, width, scheme, ink):
    case = assess(Question(0.01), ground_given(0.9, 0.005, 0.002), demands)
    file = tmp_path / "page.html"
    file.write_text(page(case, tmp_path))
    dom, console = opened(file, scheme, width)
    assert console == ""
    body = dom[dom.index("<body") :]
    assert body.count('class="main-svg"') >= 3
    assert f"fill: {ink}" in body
    assert len(re.findall(r'role="img" aria-label="[^"]{40,}"', body)) == 3
    assert not case.holds
    assert '<span class="hidden">goal, open: </span><b>G1</b> a network fails' in body


def test_text_of_others_is_no_markup(demands, tmp_path):
    named = tmp_path / "<b>&\u202e.csv"
    demands.path.rename(named)
    case = assess(Question(0.02), ground_given(0.9, 0.005, 0.002, {"<script>": 1.0}), Demands(named))
    text = page(case, tmp_path)
    assert "&lt;script&gt;" in text and "<script> 1" not in text and "<b>&" not in text
