"""How much of the ranks' time was work: the multiplicative efficiencies of the POP centre of excellence.

With u_r the seconds a step in which rank r did not wait for others, and T the seconds of a step,

    parallel = mean(u) / T = load balance (mean(u) / max(u)) * communication (max(u) / T)

https://pop-coe.eu/node/69. An exchange beside the training thread counts as far as the thread waits for it.
"""

from dataclasses import dataclass

import numpy as np

from hpcopt.report.read import Run


@dataclass(frozen=True)
class Efficiencies:
    """Shares, 0 to 1."""

    parallel: float
    load_balance: float
    communication: float


def efficiencies(run: Run, step_s: float) -> Efficiencies | None:
    """Of the warm steps, whose mean is ``step_s``; None on one rank, or where no rank's waits are known."""
    waits = run.wait_s[run.warm]
    known = waits[:, ~np.isnan(waits).all(axis=0)] if len(waits) else waits
    if known.ndim < 2 or known.shape[1] < 2 or not step_s > 0:
        return None
    useful_s = np.clip(step_s - np.nanmean(known, axis=0, dtype=np.float64), 0.0, step_s)
    mean_s, most_s = float(useful_s.mean()), float(useful_s.max())
    return Efficiencies(mean_s / step_s, mean_s / most_s if most_s else 0.0, most_s / step_s)
