"""A case as one page: what is claimed, the argument as a tree, the figures, the assumptions."""

import html
import os
from pathlib import Path
from urllib.parse import quote

from hpcopt.analysis.assurance.argument import SUPPORT, Element, argument_of
from hpcopt.analysis.assurance.case import Case
from hpcopt.analysis.assurance.figures import figures_of
from hpcopt.analysis.assurance.text import lines_of
from hpcopt.report.attributes import printable
from hpcopt.report.page import page_of, section_of, table_of

STYLE = Path(__file__).with_name("argument.css")


def page(case: Case, folder: Path, plan: Path | None = None, refresh_s: float | None = None) -> str:
    """The whole page.

    Args:
        case: the claim and its grounds.
        folder: where the page will be, which links start from.
        plan: its file, if there is one.
        refresh_s: it loads itself again so often.

    Raises:
        MetricsError: plotly is not installed.
    """
    figures = figures_of(case)
    links = {figure.name: f"#{figure.name}" for figure in figures} | _files(case, folder, plan)
    top = argument_of(case, links)
    said = "".join(f"<p>{_text(line)}</p>" for line in lines_of(case))
    body = [
        f"<section class='result' aria-label='result'>{said}</section>",
        f"<section><h2>Argument</h2><nav class='argument' aria-label='argument as a tree'><ul>{_item(top)}</ul></nav>"
        f"<p>{LEGEND}</p></section>",
        *map(section_of, figures),
        "<section><h2>Assumptions</h2>",
        table_of([["assumption", "here it is"], *([printable(a.text), a.state] for a in case.assumptions)]),
        "</section>",
    ]
    return page_of(
        f"Assurance of {case.ground.subject}", "\n".join(body), figures, STYLE.read_text(encoding="utf-8"), refresh_s
    )


LEGEND = (
    "Goal Structuring Notation: a goal is a box, a strategy slanted, a solution (evidence) round at its ends, context "
    "a rounded box, an assumption or justification an oval. Dashed: open, nothing here checks it. Double: "
    "violated. A diamond under a goal: nothing supports it yet."
)


def _item(element: Element) -> str:
    """An element and what is under it, as an item of a list; a screen reader hears kind, name and state first."""
    links = " ".join(f'<a href="{html.escape(href)}">{_text(name)}</a>' for name, href in element.links)
    hidden = f"<span class='hidden'>{element.kind}, {_state(element)}: </span>"
    box = f"<div class='element {element.kind} {element.state}'>{hidden}<b>{element.name}</b> {_text(element.text)}"
    box += f" <span class='links'>{links}</span></div>" if links else "</div>"
    if element.undeveloped:
        box += "<div class='diamond' role='img' aria-label='undeveloped'></div>"
    beside = "".join(_item(child) for child in element.children if child.kind not in SUPPORT)
    under = "".join(_item(child) for child in element.children if child.kind in SUPPORT)
    aside = f"<ul class='beside'>{beside}</ul>" if beside else ""
    below = f"<ul class='under'>{under}</ul>" if under else ""
    return f"<li><div class='row'>{box}{aside}</div>{below}</li>"


def _state(element: Element) -> str:
    if element.kind == "goal":
        return {"checked": "shown", "open": "open", "violated": "violated"}[element.state]
    return element.state


def _files(case: Case, folder: Path, plan: Path | None) -> dict[str, str]:
    """Addresses of files, from the page's folder."""
    run = case.ground.folder
    found: dict[str, Path | None] = {"run": run, "demands": case.observed.path, "plan": plan}
    if run is not None:
        found["metrics"] = run / "metrics.h5"
    return {name: _address(path, folder) for name, path in found.items() if path is not None and path.exists()}


def _address(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _text(text: str) -> str:
    return html.escape(printable(text))
