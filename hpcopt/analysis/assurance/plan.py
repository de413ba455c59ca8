"""A stopping rule that is written down before the demands are seen, and whether it was followed.

The plan says after how many demands to stop, by the number of those that failed: n_0 without a failure, n_1 with one,
..., n_K; with one more failure the network is rejected. The claim holds at the n_j at which it stops, whichever that
is: the worst-case posterior depends on the demands alone, not on the rule that ended them. What the plan guards is that
nobody chose the prior, the bound or the first demand after a look at the demands.
"""

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hpcopt.analysis.assurance.demands import Demands
from hpcopt.analysis.assurance.prior import PartialPrior
from hpcopt.analysis.assurance.worst_case import demands_needed
from hpcopt.errors import DataError, JobError

TOLERANCE = 1e-12  # of a number that went through a file
State = Literal["goes on", "holds", "rejected"]


@dataclass(frozen=True)
class Plan:
    """The rule, with all that it rests on.

    Attributes:
        bound, confidence: p, and what is wanted in it.
        prior: theta, eps and p_l.
        needed: demands to stop after, by failures: n_0, n_1, ..., n_K.
        start: demands that were there when it was written, which do not count.
        digest: of these.
        network: of its weights; empty for one that is not known.
        profile: weights by class, if there is one.
        date_created: ISO 8601.
    """

    bound: float
    confidence: float
    prior: PartialPrior
    needed: tuple[int, ...]
    start: int
    digest: str
    network: str
    profile: dict[str, float] | None
    date_created: str

    def write(self, path: Path) -> None:
        """Write it as JSON, once.

        Raises:
            JobError: there is one already, or it cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise JobError(f"{path} is there already: a plan is written once; give another name") from None
        except OSError as cause:
            raise JobError(f"cannot write {path}: {cause.strerror}") from None


@dataclass(frozen=True)
class Outcome:
    """How a plan stands.

    Attributes:
        state: of the rule.
        demands, failures: that counted: up to the end of the rule, or so far.
        left: demands to the next end, if none fails.
        breaches: in what the plan was not followed.
        after: demands beyond the end of the rule, and failures among them.
    """

    state: State
    demands: int
    failures: int
    left: int
    breaches: tuple[str, ...]
    after: tuple[int, int] = (0, 0)

    @property
    def followed(self) -> bool:
        """Whether the plan is what was done."""
        return not self.breaches


def make_plan(
    prior: PartialPrior,
    bound: float,
    confidence: float,
    allowed: int,
    seen: Demands | None = None,
    network: str = "",
    profile: dict[str, float] | None = None,
) -> Plan:
    """Plan for a confidence, with at most ``allowed`` failures.

    Raises:
        JobError: no number of demands gives that confidence with that many failures.
    """
    needed = []
    for failures in range(allowed + 1):
        n = demands_needed(prior, bound, confidence, failures)
        if n is None:
            raise JobError(
                f"with {failures} failures no number of demands gives confidence {confidence:g} in {bound:g}: "
                f"theta = {prior.theta:g}, eps = {prior.eps:g} and p_l = {prior.p_l:g} are too little; "
                + ("give a p_l above 0" if failures and not prior.p_l else "give a larger bound, or better evidence")
            )
        needed.append(n)
    start = 0 if seen is None else len(seen)
    digest = "" if seen is None else seen.digest(start)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Plan(bound, confidence, prior, tuple(needed), start, digest, network, profile, date)


def read_plan(path: Path) -> Plan:
    """Read what ``write`` wrote.

    Raises:
        JobError: the file is missing or no plan.
    """
    try:
        plan = TypeAdapter(Plan).validate_json(path.read_bytes())
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise JobError(f"{path} is no plan ({where}: {first['msg']}): --write-plan makes one") from None
    except OSError as cause:
        raise JobError(f"{path} is no plan ({cause.strerror}): --write-plan makes one") from None
    if not plan.needed or min(*plan.needed, plan.start) < 0:
        raise JobError(f"{path} is no plan (it counts no demands): --write-plan makes one")
    return plan


def check(plan: Plan, demands: Demands, prior: PartialPrior, network: str, profile: dict[str, float] | None) -> Outcome:
    """Follow the rule through the demands, and compare what it was made for with what is there.

    Raises:
        DataError: there are fewer demands than when the plan was written.
    """
    if len(demands) < plan.start:
        raise DataError(f"{demands.path} has {len(demands)} demands, and had {plan.start} when the plan was written")
    failing = np.cumsum(demands.failures[plan.start :])
    needed = np.array(plan.needed, np.int64)
    most = len(needed) - 1
    ends = (failing > most) | (np.arange(1, len(failing) + 1) >= needed[np.minimum(failing, most)])
    counted = int(np.argmax(ends)) + 1 if ends.any() else len(failing)
    failures = int(failing[counted - 1]) if counted else 0
    state: State = "goes on" if not ends.any() else "rejected" if failures > most else "holds"
    left = int(needed[failures]) - counted if state == "goes on" else 0
    after = (len(failing) - counted, int(failing[-1]) - failures if counted else 0)
    return Outcome(state, counted, failures, left, tuple(_breaches(plan, demands, prior, network, profile)), after)


def _breaches(
    plan: Plan, demands: Demands, prior: PartialPrior, network: str, profile: dict[str, float] | None
) -> list[str]:
    found = []
    for name, planned in dataclasses.asdict(plan.prior).items():
        if abs((now := getattr(prior, name)) - planned) > TOLERANCE:
            found.append(f"{name} is {now:g}, and was {planned:g} in the plan")
    if network != plan.network:
        found.append("the network has other weights than the one that was planned for")
    if (profile is None) != (plan.profile is None) or not _close(profile or {}, plan.profile or {}):
        found.append("the operational profile is another than the plan's")
    if plan.digest and demands.digest(plan.start) != plan.digest:
        found.append("the demands that were there when the plan was written have changed")
    return found


def _close(one: dict[str, float], other: dict[str, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) <= TOLERANCE for name in one)
