"""How far a trained classifier can be trusted: conservative bounds on its probability of failure per demand.

X is the unknown probability that the network fails on the next demand; demands are drawn independently from one
operational profile. What life-cycle evidence says of X is a partial prior: Pr(X <= eps) >= theta, X >= p_l. Operation
adds k failures in n demands. Whatever is told is the worst case over all priors that agree with the partial one
(Zhao, Banks, Sharp, Robu, Flynn, Fisher, Huang: A safety framework for critical systems utilising deep neural
networks, SAFECOMP 2020, arXiv:2003.05311; conservative Bayesian inference after Bishop, Bloomfield, Littlewood,
Povyakalo, Wright, IEEE TSE 37(5), 2011).
"""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.analysis.assurance.case import Case, Observed, Question, assess
    from hpcopt.analysis.assurance.demands import Demands
    from hpcopt.analysis.assurance.ground import Ground, ground_given, ground_of_run
    from hpcopt.analysis.assurance.next_demands import Survival, survival
    from hpcopt.analysis.assurance.plan import Plan, make_plan
    from hpcopt.analysis.assurance.prior import PartialPrior
    from hpcopt.analysis.assurance.sample_bounds import Samples, weigh
    from hpcopt.analysis.assurance.worst_case import confidence, demands_needed

PLACES = {
    "case": ("Case", "Observed", "Question", "assess"),
    "demands": ("Demands",),
    "ground": ("Ground", "ground_given", "ground_of_run"),
    "next_demands": ("Survival", "survival"),
    "plan": ("Plan", "make_plan"),
    "prior": ("PartialPrior",),
    "sample_bounds": ("Samples", "weigh"),
    "worst_case": ("confidence", "demands_needed"),
}

__all__ = [
    "Case",
    "Demands",
    "Ground",
    "Observed",
    "PartialPrior",
    "Plan",
    "Question",
    "Samples",
    "Survival",
    "assess",
    "confidence",
    "demands_needed",
    "ground_given",
    "ground_of_run",
    "make_plan",
    "survival",
    "weigh",
]

__getattr__ = lazily(__name__, {name: module for module, names in PLACES.items() for name in names})
