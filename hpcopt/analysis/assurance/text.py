"""A case in sentences, for a terminal and the head of the page."""

from collections.abc import Iterator

from hpcopt.analysis.assurance.case import Case


def lines_of(case: Case) -> Iterator[str]:
    """What is claimed, whether it holds, from what, and what it would still take."""
    asked, seen, prior = case.question, case.observed, case.ground.prior
    claim = f"at most {asked.bound:g} failures a demand with confidence {asked.confidence:g}"
    yield f"{case.ground.subject}: the claim of {claim} {'holds' if case.holds else 'does not hold'}."
    yield (
        f"Confidence, worst case: {number(case.confidence)}, after {seen.failures:,} failures in {seen.demands:,} "
        f"demands (uniform prior, for comparison: {number(case.uniform)})."
    )
    for each in case.survival:
        yield f"The next {each.demands:,} demands all succeed with probability {each.value:.6g}, worst case."
    yield f"Before operation: at most {prior.eps:.6g} with confidence {prior.theta:.6g}, and at least {prior.p_l:g}."
    if (weighing := case.ground.weighing) is not None:
        samples = weighing.samples
        yield (
            f"That is from {samples.failed:,} failures in {samples.total:,} test samples, which count as "
            f"{weighing.effective:,.4g} under the operational profile ({weighing.method})."
        )
    if case.confidence < asked.confidence:
        yield from _needed(case)
    if case.outcome is not None:
        yield from _planned(case)


def assumptions(case: Case) -> Iterator[str]:
    """Each with its state."""
    for assumption in case.assumptions:
        yield f"  {assumption.state:<9} {assumption.text}"


def short(case: Case) -> str:
    """One line for each look of a watch."""
    seen, more = case.observed, case.needed[0]
    need = "enough" if case.confidence >= case.question.confidence else f"{_count(more)} more needed"
    drift = ", drift" if case.drift is not None and case.drift.found else ""
    plan = f", plan {case.outcome.state}" if case.outcome is not None else ""
    return (
        f"{seen.demands:,} demands, {seen.failures:,} failed: confidence {number(case.confidence)}, {need}{drift}{plan}"
    )


def number(probability: float) -> str:
    """A probability, which is never shown as 1 for being near it."""
    return "above 0.999999" if 0.999999 < probability < 1 else f"{probability:.6g}"


def _needed(case: Case) -> Iterator[str]:
    ways = ", ".join(f"{_count(n)} with {more or 'no'} more failed" for more, n in case.needed.items())
    yield f"Demands still needed: {ways}."
    if case.ground.prior.p_l == 0 and case.observed.failures:
        yield (
            "With p_l = 0 a failure takes all confidence away: the worst prior holds every good network for perfect. "
            "Give a p_l (--lowest) that no network of this kind is below."
        )


def _planned(case: Case) -> Iterator[str]:
    assert case.outcome is not None
    outcome = case.outcome
    state = {
        "goes on": f"goes on: {outcome.left:,} demands more, if none fails",
        "holds": "has ended: the claim holds",
        "rejected": "has ended: too many failures, the network is rejected",
    }[outcome.state]
    after, failed = outcome.after
    yield f"Plan {state}." + (f" {after:,} demands came after its end, {failed:,} of them failed." if after else "")


def _count(number: int | None) -> str:
    return "no number" if number is None else f"{number:,}"
