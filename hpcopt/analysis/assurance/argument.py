"""The claim as an argument: goals, the strategy that splits them, and the evidence that ends each branch.

The kinds of element, and what they stand for, are those of the Goal Structuring Notation (GSN Community Standard 3,
SCSC-141C, 2021): a goal is a claim, a strategy how it is argued, a solution the evidence; context, assumption and
justification stand beside what they belong to. A goal without evidence is undeveloped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hpcopt.analysis.assurance.assumptions import About, State
from hpcopt.analysis.assurance.case import Case
from hpcopt.analysis.assurance.text import number

Kind = Literal["goal", "strategy", "solution", "context", "assumption", "justification"]
LETTERS: Mapping[Kind, str] = {
    "goal": "G",
    "strategy": "S",
    "solution": "Sn",
    "context": "C",
    "assumption": "A",
    "justification": "J",
}
SUPPORT: tuple[Kind, ...] = ("goal", "strategy", "solution")
METHODS = {"clopper-pearson": "Clopper and Pearson", "hoeffding": "Hoeffding"}


@dataclass(frozen=True)
class Element:
    """A node of the tree.

    Attributes:
        kind: of the notation.
        text: a sentence.
        state: whether it was checked here; of a goal, whether it is shown.
        children: what supports it, and what stands beside it.
        links: text and address, from where the page is.
        name: letter and number, once the tree is numbered.
    """

    kind: Kind
    text: str
    state: State = "checked"
    children: tuple["Element", ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    name: str = ""

    @property
    def undeveloped(self) -> bool:
        """Whether it is a goal that nothing supports."""
        return self.kind == "goal" and not any(child.kind in SUPPORT for child in self.children)


def argument_of(case: Case, links: Mapping[str, str]) -> Element:
    """The tree of a case, numbered.

    Args:
        case: the claim and its grounds.
        links: addresses of what the leaves point at, by name: run, metrics, demands, plan, confidence, survival,
            classes; a leaf without one has no link.
    """
    asked = case.question
    top = Element(
        "goal",
        f"{case.ground.subject} fails on at most {asked.bound:g} of its demands, with confidence {asked.confidence:g}.",
        "checked" if case.holds else "open",
        (
            Element("context", _profile_text(case)),
            Element(
                "strategy",
                "Argue by conservative Bayesian inference: what is known before operation is a partial prior, "
                "operation adds demands, and the worst prior that agrees with both is reported.",
                "checked",
                (
                    Element("justification", JUSTIFICATION),
                    _before(case, links),
                    _operation(case, links),
                    _follows(case, links),
                    _representative(case, links),
                    *([_planned(case, links)] if case.outcome is not None else []),
                ),
            ),
        ),
    )
    return _numbered(top)


JUSTIFICATION = (
    "The least confidence over all such priors has a closed form, which a prior of two points attains; no other prior "
    "that agrees with the evidence gives less (Zhao et al., SAFECOMP 2020)."
)


def elements(top: Element) -> Iterator[Element]:
    """All of a tree, from the top."""
    yield top
    for child in top.children:
        yield from elements(child)


def _before(case: Case, links: Mapping[str, str]) -> Element:
    prior, weighing = case.ground.prior, case.ground.weighing
    text = f"Before operation: at most {prior.eps:.4g} with confidence {prior.theta:.4g}; at least {prior.p_l:g}."
    if weighing is None:
        return Element("goal", text, "open", _assumed(case, "before"))
    samples = weighing.samples
    solution = Element(
        "solution",
        f"{samples.failed} of {samples.total} test samples fail. {METHODS[weighing.method]}'s bound; under the "
        f"profile they count as {weighing.effective:.4g}.",
        links=_chosen(links, "run", "metrics"),
    )
    return Element("goal", text, "checked", (solution, *_assumed(case, "before")))


def _operation(case: Case, links: Mapping[str, str]) -> Element:
    seen = case.observed
    text = f"In operation {seen.failures:,} of {seen.demands:,} demands failed."
    sources = _chosen(links, "demands", "confidence")
    solution = (Element("solution", "Each demand's outcome, as it was logged.", links=sources),) if seen.demands else ()
    state: State = "checked" if seen.demands else "open"
    beside = _assumed(case, "operation") + (() if case.outcome is not None else _assumed(case, "rule"))
    return Element("goal", text, state, (*solution, *beside))


def _follows(case: Case, links: Mapping[str, str]) -> Element:
    asked, more = case.question, case.needed[0]
    enough = case.confidence >= asked.confidence
    need = "" if enough else f"; {'no number' if more is None else f'{more:,}'} more without failure would do"
    ahead = "".join(f" The next {s.demands:,} all succeed with probability {s.value:.4g}." for s in case.survival)
    figures = Element("solution", "Worst case as the demands came.", links=_chosen(links, "confidence", "survival"))
    text = f"From both follows confidence {number(case.confidence)}{need}.{ahead}"
    return Element("goal", text, "checked" if enough else "open", (figures,))


def _representative(case: Case, links: Mapping[str, str]) -> Element:
    (assumption,) = _assumed(case, "profile")
    text = "The demands are drawn from the operational profile."
    if case.drift is None:
        return Element("goal", text, "open", (assumption,))
    solution = replace(assumption, kind="solution", links=_chosen(links, "classes", "demands"))
    return Element("goal", text, assumption.state, (solution,))


def _planned(case: Case, links: Mapping[str, str]) -> Element:
    assert case.plan is not None and case.outcome is not None
    outcome, (assumption,) = case.outcome, _assumed(case, "rule")
    ends = ", ".join(f"{n:,} with {k}" for k, n in enumerate(case.plan.needed))
    text = f"The stopping rule was planned ahead (stop after {ends} failed) and {SAID[outcome.state]}."
    state: State = "violated" if outcome.state == "rejected" else assumption.state
    return Element("goal", text, state, (replace(assumption, kind="solution", links=_chosen(links, "plan")),))


SAID = {"goes on": "goes on", "holds": "has ended with the claim", "rejected": "has ended with the network rejected"}


def _profile_text(case: Case) -> str:
    profile = case.ground.profile
    if profile is None:
        return "Operational profile: that of the test samples; no other was given."
    return "Operational profile: " + ", ".join(f"{name} {weight:.3g}" for name, weight in profile.items()) + "."


def _assumed(case: Case, about: About) -> tuple[Element, ...]:
    """The assumptions of a part of the argument."""
    return tuple(Element("assumption", a.text, a.state) for a in case.assumptions if a.about == about)


def _chosen(links: Mapping[str, str], *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, links[name]) for name in names if name in links)


def _numbered(top: Element) -> Element:
    counts: dict[Kind, int] = {}

    def number(element: Element) -> Element:
        counts[element.kind] = counts.get(element.kind, 0) + 1
        name = f"{LETTERS[element.kind]}{counts[element.kind]}"
        return replace(element, name=name, children=tuple(map(number, element.children)))

    return number(top)
