"""How often a claim of confidence is wrong: networks are drawn, tried in operation, and trusted by two rules.

    python -m benchmarks.assurance            # prints the table
    python -m benchmarks.assurance --write    # writes it into docs/results/assurance.md

Nature draws each network's probability of failure X; each rule looks at its demands every so often, and claims X <= p
as soon as it has 95 % confidence in it. A rule is good if of its claims at most 5 % are wrong, whatever nature is
within what the rule knows. Looks may be many: a posterior does not care who stopped, or why.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import beta

from hpcopt.analysis.assurance.prior import PartialPrior
from hpcopt.analysis.assurance.worst_case import confidence, demands_needed, uniform_confidence

PAGE = Path(__file__).parents[1] / "docs/results/assurance.md"
BEGIN, END = "<!-- begin table -->\n", "<!-- end table -->"
NETWORKS, SEED = 10_000, 0
BOUND, WANTED = 0.01, 0.95
EPS, P_L = 0.002, 1e-4
EVERY, LOOKS = 25, 160
MORE = 20  # times the networks where there is one look, which costs little and comes close to 5 %

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Nature:
    """Where networks come from.

    Attributes:
        name: in words.
        draw: probabilities of failure, (networks,).
        theta: that the conservative rule is told; the truth, unless the name says otherwise.
        looks: whether the rules look again and again, and not once, after as many demands as it takes without failure.
    """

    name: str
    draw: Draw
    theta: float
    looks: bool = True


@dataclass(frozen=True)
class Row:
    """What became of a rule's claims."""

    nature: str
    theta: float
    rule: str
    networks: int
    claims: float
    wrong: float
    demands: float


def two_points(theta: float) -> Draw:
    """theta at eps, the rest just above the bound: the worst there is."""
    return lambda rng, n: np.where(rng.random(n) < theta, EPS, BOUND * (1 + 1e-9))


def spread(theta: float) -> Draw:
    """theta between p_l and eps, the rest between eps and 1/10, each evenly in the logarithm."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        good = P_L * (EPS / P_L) ** rng.random(n)
        return np.where(rng.random(n) < theta, good, EPS * (0.1 / EPS) ** rng.random(n))

    return draw


def smooth(a: float, b: float) -> Draw:
    """Beta(a, b), nowhere below p_l."""
    return lambda rng, n: np.maximum(rng.beta(a, b, n), P_L)


NATURES = (
    Nature("two points, few good, one look", two_points(0.2), 0.2, looks=False),
    Nature("two points, few good", two_points(0.2), 0.2),
    Nature("two points, many good", two_points(0.7), 0.7),
    Nature("spread, few good", spread(0.2), 0.2),
    Nature("spread, many good", spread(0.7), 0.7),
    Nature("Beta(1, 40)", smooth(1, 40), float(beta(1, 40).cdf(EPS))),
    Nature("Beta(1/2, 200)", smooth(0.5, 200), float(beta(0.5, 200).cdf(EPS))),
    Nature("two points, few good, and the rule is told 0.7", two_points(0.2), 0.7),
)


def simulate(nature: Nature, networks: int = NETWORKS) -> tuple[Row, Row]:
    """Draw networks (MORE for one look), operate them, and let both rules claim."""
    rng = np.random.default_rng(SEED)
    prior = PartialPrior(nature.theta, EPS, P_L)
    every, looks = (EVERY, LOOKS) if nature.looks else (demands_needed(prior, BOUND, WANTED) or 0, 1)
    networks = networks if nature.looks else MORE * networks
    x = nature.draw(rng, networks)
    failures = np.cumsum(rng.binomial(every, x[:, None], size=(networks, looks)), axis=1)
    demands = every * np.arange(1, looks + 1)
    rules = {
        "conservative": confidence(prior, BOUND, failures, demands),
        "uniform Beta(1, 1)": uniform_confidence(BOUND, failures, demands),
    }
    conservative, uniform = (_row(nature, rule, found >= WANTED, x, demands) for rule, found in rules.items())
    return conservative, uniform


def _row(nature: Nature, rule: str, enough: np.ndarray, x: np.ndarray, demands: np.ndarray) -> Row:
    claims = enough.any(1)
    wrong = float((x[claims] > BOUND).mean()) if claims.any() else 0.0
    took = float(np.median(demands[enough[claims].argmax(1)])) if claims.any() else np.nan
    return Row(nature.name, nature.theta, rule, len(x), float(claims.mean()), wrong, took)


def table(networks: int = NETWORKS) -> str:
    """All natures, as Markdown."""
    lines = [
        "| networks are drawn from | theta | rule | claims | of them wrong | demands, median |",
        "|---|---|---|---|---|---|",
    ]
    for nature in NATURES:
        for row in simulate(nature, networks):
            wrong = f"**{row.wrong:.1%}**" if row.wrong > 1 - WANTED + margin(row) else f"{row.wrong:.1%}"
            lines.append(
                f"| {row.nature} | {row.theta:.2g} | {row.rule} | {row.claims:.1%} | {wrong} | {row.demands:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def margin(row: Row) -> float:
    """Three standard errors of a share of 5 % of the claims."""
    return float(3 * np.sqrt(WANTED * (1 - WANTED) / max(1.0, row.claims * row.networks)))


def written(page: str) -> str:
    """The page with the table as it is found now."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--write", action="store_true", help="into the page")
    if p.parse_args().write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print(table())
