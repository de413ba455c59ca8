"""What is known of a network before operation, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcopt.analysis.assurance.held_out import count_failures
from hpcopt.analysis.assurance.prior import PartialPrior
from hpcopt.analysis.assurance.sample_bounds import Method, Weighing, weigh
from hpcopt.errors import JobError
from hpcopt.runs import Run
from hpcopt.store.weights import digest_of

THETA = 0.9


@dataclass(frozen=True)
class Ground:
    """Evidence from before operation.

    Attributes:
        subject: what the claim is about.
        prior: that the evidence gives.
        weighing: of the test samples that theta and eps come from; None if they were given.
        profile: weights by class, if there is one.
        folder: of the run, if there is one.
        network: a digest of its weights; empty if they are not known.
        chosen_by_test: whether the run ended where its test score was good.
    """

    subject: str
    prior: PartialPrior
    weighing: Weighing | None = None
    profile: Mapping[str, float] | None = None
    folder: Path | None = None
    network: str = ""
    chosen_by_test: bool = False


def ground_of_run(
    run: Run,
    theta: float | None = None,
    eps: float | None = None,
    p_l: float = 0.0,
    profile: Mapping[str, float] | None = None,
    method: Method = "clopper-pearson",
    score: str | None = None,
) -> Ground:
    """Take theta or eps from the run's test samples: whichever is not given, or eps for theta = 0.9 if neither is. If
    both are, they are taken for granted.

    Raises:
        JobError: the values contradict each other.
        DataError: the run has no test samples that fail or succeed, or none of a class that the profile has.
        CheckpointError: the run has no weights.
    """
    weighing = None
    if theta is None or eps is None:
        weighing = weigh(count_failures(run, score), profile, method)
        if eps is None:
            theta = THETA if theta is None else theta
            eps = weighing.bound(theta)
        else:
            theta = weighing.confidence(eps)
    scripted = "session" in run.described
    return Ground(
        subject=str(run.described.get("run", {}).get("name") or run.directory.path.name),
        prior=PartialPrior(theta, eps, p_l),
        weighing=weighing,
        profile=profile,
        folder=run.directory.path,
        network=digest_of(run.weights()),
        chosen_by_test=not scripted and run.job.run.stop_at is not None,
    )


def ground_given(
    theta: float | None, eps: float | None, p_l: float = 0.0, profile: Mapping[str, float] | None = None
) -> Ground:
    """Take a partial prior for granted.

    Raises:
        JobError: a part of it is missing, or its values contradict each other.
    """
    if theta is None or eps is None:
        raise JobError("without a run both theta and eps must be given: nothing else says what they are")
    return Ground("a network", PartialPrior(theta, eps, p_l), profile=profile)
