"""The claim about a network's probability of failure, with all that it rests on, at one look at the demands."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.analysis.assurance import worst_case
from hpcopt.analysis.assurance.assumptions import Assumption, assumptions_of
from hpcopt.analysis.assurance.demands import Demands, Failures
from hpcopt.analysis.assurance.ground import Ground
from hpcopt.analysis.assurance.next_demands import Survival, survival
from hpcopt.analysis.assurance.plan import Outcome, Plan, check
from hpcopt.analysis.assurance.prior import TwoPoints, require_counts, require_probability
from hpcopt.analysis.assurance.profile import Drift, drift_from_profile, drift_from_samples, level_of_look
from hpcopt.errors import JobError

MOST_MORE = 3


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        bound: p, on the probability of failure per demand.
        confidence: that is wanted in it.
        ahead: numbers of next demands to survive.
        drift_level: chance of calling drift where there is none.
    """

    bound: float
    confidence: float = 0.95
    ahead: tuple[int, ...] = (100,)
    drift_level: float = 0.01


@dataclass(frozen=True)
class Observed:
    """Demands in operation.

    Attributes:
        demands, failures: n and k.
        classes: demands of each class; empty if nobody knows.
        path: of the file, if there is one.
        trail: whether each failed, (n,), if that is known.
    """

    demands: int = 0
    failures: int = 0
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    path: Path | None = None
    trail: Failures | None = None

    def __post_init__(self) -> None:
        require_counts(self.failures, self.demands)

    @classmethod
    def among(cls, stream: Demands, first: int, count: int) -> "Observed":
        """Demands of a stream, from the first on."""
        trail = stream.failures[first : first + count]
        classes = dict(Counter(stream.classes[first : first + count]))
        return cls(len(trail), int(trail.sum()), classes, stream.path, trail)


@dataclass(frozen=True)
class Case:
    """The claim and its grounds.

    Attributes:
        confidence: worst case, in the bound.
        attained: the prior that leaves no more.
        uniform: what the uniform prior would say, for comparison.
        survival: worst case, for each number of demands ahead.
        needed: demands still needed for the wanted confidence, by the failures among them; None: no number is enough.
        drift: None if no classes are known.
        plan, outcome: if there is one.
    """

    question: Question
    ground: Ground
    observed: Observed
    confidence: float
    attained: TwoPoints
    uniform: float
    survival: tuple[Survival, ...]
    needed: Mapping[int, int | None]
    drift: Drift | None
    plan: Plan | None
    outcome: Outcome | None
    assumptions: tuple[Assumption, ...]

    @property
    def holds(self) -> bool:
        """Whether the wanted confidence is there, and nothing that was checked speaks against it."""
        violated = any(assumption.state == "violated" for assumption in self.assumptions)
        planned = self.outcome is None or self.outcome.state == "holds"
        return self.confidence >= self.question.confidence and planned and not violated

    def as_data(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        found: dict[str, Any] = _plain(dataclasses.asdict(self))
        del found["observed"]["trail"]
        return {"holds": self.holds, **found}


def assess(
    question: Question,
    ground: Ground,
    observed: Observed | Demands,
    plan: Plan | None = None,
    look: int | None = None,
) -> Case:
    """Put the case together.

    Args:
        question: what is asked; a plan's bound and confidence must be these.
        ground: what is known before operation.
        observed: counts, or a stream, of which a plan counts some demands only.
        plan: the rule that was to be followed.
        look: of a stream that is looked at again and again, the number of this look, from 1 on.

    Raises:
        JobError: bounds contradict each other, or no demands could give confidence in what is asked.
        DataError: the stream is shorter than when the plan was written.
    """
    prior = ground.prior
    require_probability("bound", question.bound)
    if question.bound < prior.eps:
        raise JobError(
            f"bound = {question.bound:g} is below eps = {prior.eps:g}, and nothing is known of it: no demands would "
            f"give confidence in it; ask for at least {prior.eps:g}, or bring more evidence, such as test samples"
        )
    if plan is not None and (plan.bound, plan.confidence) != (question.bound, question.confidence):
        raise JobError(
            f"the plan is for bound = {plan.bound:g} with confidence {plan.confidence:g}, and not for what is asked: "
            f"{question.bound:g} with {question.confidence:g}"
        )
    outcome = None
    if isinstance(observed, Demands):
        first, count = 0, len(observed)
        if plan is not None:
            outcome = check(plan, observed, prior, ground.network, _dict(ground.profile))
            first, count = plan.start, outcome.demands
        observed = Observed.among(observed, first, count)
    k, n = observed.failures, observed.demands
    level = question.drift_level if look is None else level_of_look(question.drift_level, look)
    drift = drift_of(ground, observed, level)
    return Case(
        question=question,
        ground=ground,
        observed=observed,
        confidence=float(worst_case.confidence(prior, question.bound, k, n)),
        attained=worst_case.attained(prior, question.bound, k, n),
        uniform=float(worst_case.uniform_confidence(question.bound, k, n)),
        survival=tuple(survival(prior, t, k, n) for t in question.ahead),
        needed={more: _still(question, ground, k + more, n) for more in range(MOST_MORE)},
        drift=drift,
        plan=plan,
        outcome=outcome,
        assumptions=assumptions_of(ground, drift, outcome),
    )


def drift_of(ground: Ground, observed: Observed, level: float) -> Drift | None:
    """Test the demands' classes against the profile, or against the test samples where there is none."""
    if not observed.classes:
        return None
    if ground.profile is not None:
        return drift_from_profile(observed.classes, ground.profile, level)
    if ground.weighing is not None:
        return drift_from_samples(observed.classes, ground.weighing.samples.counts, level)
    return None


def _still(question: Question, ground: Ground, failures: int, demands: int) -> int | None:
    """Demands beyond those there are."""
    total = worst_case.demands_needed(ground.prior, question.bound, question.confidence, failures)
    return None if total is None else max(total - demands, 0)


def _dict(profile: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if profile is None else dict(profile)


def _plain(value: Any) -> Any:
    """Without paths, tuples and arrays."""
    match value:
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case Path():
            return str(value)
        case np.ndarray():
            return None
    return value
