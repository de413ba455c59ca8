"""How long a step takes on more ranks than were tried: phases that shrink with a rank's samples, and messages.

For a rank with b samples of a batch, on P ranks, whose gradients travel in k buckets:

    phase       load (c0 + c1 b) for each phase of computing; c0 is work that more ranks do not share
    network     N = alpha m + beta v: m messages one after the other, v bytes sent by a rank; all exchanges share alpha
                and beta, which are the machine's (Hockney 1994, doi:10.1016/S0167-8191(06)80021-9)
    exposed     max((N + K) / k, N + K - (1 - 1/k) backward), K being encoding and decoding: the last bucket goes when
                backward has ended, the others are hidden by it as far as it lasts; k = 1 where nothing overlaps
    step        phases + exposed + alpha ceil(log2 P), in which the ranks agree on the loss

`load` is the number of threads that share a core, at least 1. Coefficients are not negative and minimise the sum of
squares of relative errors. Intervals come from resampling the residuals (Efron 1979): they hold the noise of the runs,
not what the model leaves out: contention, stragglers, links of several kinds. The hold-out shows some of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CODEC = ("encode", "decode")
HIDING = "backward"
DRAWS, INTERVAL = 200, (5, 95)  # resamples; percentiles


@dataclass(frozen=True)
class Setting:
    """What is known of a step before it is run.

    Attributes:
        series: runs of one name differ in ranks, batch and seed only.
        samples: of a rank.
        load: threads that share a core, at least 1.
        messages: that a rank sends one after the other.
        nbytes: that a rank sends.
        buckets: whose exchange overlaps with backward; 1 where nothing does.
    """

    series: str
    ranks: int
    samples: float
    load: float
    messages: float
    nbytes: float
    buckets: int


@dataclass(frozen=True)
class Measured:
    """A run: its setting, and the seconds of its step, of its phases of computing and coding, and of its messages."""

    setting: Setting
    step_s: float
    phases: dict[str, float]
    network_s: float


@dataclass(frozen=True)
class Fit:
    """Coefficients, (k,), and those of resampled residuals, (DRAWS, k): NaN if there were no more numbers than
    coefficients.
    """

    coefficients: np.ndarray
    draws: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """Coefficients first, then the draws, (1 + DRAWS, k)."""
        return np.vstack([self.coefficients, self.draws])


@dataclass(frozen=True)
class Estimate:
    """Seconds, with the ends of their interval: NaN where there is none."""

    seconds: float
    low_s: float
    high_s: float


class StepModel:
    """Fitted to runs of one machine.

    Attributes:
        network: alpha, seconds a message, and beta, seconds a byte; zero if no run had more than one rank.
    """

    def __init__(self, runs: Sequence[Measured]) -> None:
        rng = np.random.default_rng(0)
        sending = [run for run in runs if run.setting.messages > 0]
        terms = np.array([[run.setting.messages, run.setting.nbytes] for run in sending]).reshape(-1, 2)
        self.network = fit(terms, np.array([run.network_s for run in sending]), rng)
        self._phases: dict[str, dict[str, Fit]] = {}
        for series in dict.fromkeys(run.setting.series for run in runs):
            own = [run for run in runs if run.setting.series == series]
            terms = np.array([[run.setting.load, run.setting.load * run.setting.samples] for run in own])
            if len(np.unique(terms[:, 1] / terms[:, 0])) == 1:
                terms[:, 1] = 0  # one number of samples cannot tell the two apart
            names = dict.fromkeys(name for run in own for name in run.phases)
            self._phases[series] = {
                name: fit(terms, np.array([run.phases.get(name, 0.0) for run in own]), rng) for name in names
            }

    def step(self, setting: Setting) -> Estimate:
        """Predict the time of a step."""
        terms = setting.load * np.array([1.0, setting.samples])
        phases = {name: fitted.all @ terms for name, fitted in self._phases[setting.series].items()}
        alpha, beta = self.network.all.T
        exposed_s = alpha * setting.messages + beta * setting.nbytes + sum(phases.pop(name, 0.0) for name in CODEC)
        hidden_s = (1 - 1 / setting.buckets) * phases.get(HIDING, 0.0)
        exposed_s = np.maximum(exposed_s / setting.buckets, exposed_s - hidden_s)
        agreement_s = alpha * np.ceil(np.log2(setting.ranks))
        seconds = sum(phases.values()) + exposed_s + agreement_s
        return _estimate(seconds)

    def alpha_beta(self) -> tuple[Estimate, Estimate]:
        """Seconds a message, and seconds a byte."""
        return _estimate(self.network.all[:, 0]), _estimate(self.network.all[:, 1])


def fit(terms: np.ndarray, seconds: np.ndarray, rng: np.random.Generator) -> Fit:
    """Fit seconds, (n,), by non-negative multiples of two terms, (n, 2); what took no time is left out."""
    terms, seconds = terms[seconds > 0], seconds[seconds > 0]
    count = len(seconds)
    coefficients = _solve(terms, seconds[None])[0]
    used = np.count_nonzero(coefficients)
    if count <= used:
        return Fit(coefficients, np.full((DRAWS, 2), np.nan if count else 0.0))
    expected = terms @ coefficients
    errors = (seconds / expected - 1) * np.sqrt(count / (count - used))
    resampled = expected * np.maximum(1 + rng.choice(errors, (DRAWS, count)), 1e-3)
    return Fit(coefficients, _solve(terms, resampled))


def _solve(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Least squares of relative errors with coefficients of at least 0: terms (n, 2), seconds (draws, n), gives
    (draws, 2). The best of: the first term alone, the second alone, both if neither comes out negative.
    """
    scaled = terms / seconds[:, :, None]
    gram, right = np.einsum("dni,dnj->dij", scaled, scaled), scaled.sum(1)
    first, second = (np.zeros_like(right) for _ in range(2))
    for column, alone in enumerate((first, second)):
        square = gram[:, column, column]
        alone[:, column] = np.divide(right[:, column], square, out=np.zeros_like(square), where=square > 0)
    determinant = np.linalg.det(gram)
    regular = determinant > 1e-9 * gram[:, 0, 0] * gram[:, 1, 1]
    both = np.zeros_like(right)
    both[regular] = np.linalg.solve(gram[regular], right[regular][:, :, None])[:, :, 0]
    candidates = np.stack([first, second, np.where((both >= 0).all(1, keepdims=True), both, 0)])
    errors = np.einsum("cdi,dij,cdj->cd", candidates, gram, candidates) - 2 * (candidates * right).sum(2)
    best: np.ndarray = candidates[errors.argmin(0), np.arange(len(right))]
    return best


def _estimate(seconds: np.ndarray) -> Estimate:
    """The first value is the estimate, the others are draws."""
    low, high = np.percentile(seconds[1:], INTERVAL)
    return Estimate(float(seconds[0]), float(low), float(high))
