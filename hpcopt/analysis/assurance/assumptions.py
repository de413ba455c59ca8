"""What a claim rests on beside its numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hpcopt.analysis.assurance.ground import Ground
from hpcopt.analysis.assurance.plan import Outcome
from hpcopt.analysis.assurance.profile import Drift

State = Literal["checked", "open", "violated"]
About = Literal["before", "operation", "profile", "rule"]


@dataclass(frozen=True)
class Assumption:
    """What must be true for the claim to be, and whether anything here checks it.

    Attributes:
        about: the part of the argument that it belongs to.
        text: a sentence.
        state: "open" where nothing here could tell.
    """

    about: About
    text: str
    state: State = "open"


def assumptions_of(ground: Ground, drift: Drift | None, outcome: Outcome | None) -> tuple[Assumption, ...]:
    """All of them, in the order of the argument."""
    operation = (
        "Each demand fails or not independently of the others.",
        "Whoever scored the demands saw every failure.",
    )
    return (
        *_before(ground),
        *(Assumption("operation", text) for text in operation),
        _profile(drift),
        _rule(outcome),
    )


def _before(ground: Ground) -> Iterator[Assumption]:
    if ground.weighing is None:
        yield Assumption("before", "theta and eps were given, and not computed from samples here.")
    else:
        said = "No choice was made by the test samples: "
        if ground.chosen_by_test:
            stopped = f"{said}the run stopped where a score of theirs was good enough ([run] stop_at)."
            yield Assumption("before", stopped, "violated")
        else:
            yield Assumption("before", f"{said}neither network nor settings nor the moment to stop.")
        yield Assumption("before", "The test samples are drawn as the profile draws demands, class by class.")
        yield Assumption("before", "The bound's confidence level is taken for the prior probability theta.")
    if ground.prior.p_l > 0:
        yield Assumption("before", f"No network of this kind is better than p_l = {ground.prior.p_l:g}.")


def _profile(drift: Drift | None) -> Assumption:
    text = "Demands come from the operational profile, and go on doing so"
    if drift is None:
        return Assumption("profile", f"{text}: their classes are not known, so no drift would be seen.")
    said = f"{text}: {drift.method} p-value {drift.p_value:.2g}, drift below {drift.level:.2g}."
    return Assumption("profile", said, "violated" if drift.found else "checked")


def _rule(outcome: Outcome | None) -> Assumption:
    if outcome is None:
        said = "Prior, bound and first demand were chosen before the demands were seen: there is no plan to check."
        return Assumption("rule", said)
    if outcome.followed:
        said = "The plan was followed: network, prior, profile and first demand are the plan's."
        return Assumption("rule", said, "checked")
    return Assumption("rule", f"The plan was not followed: {'; '.join(outcome.breaches)}.", "violated")
