"""What to tune, said once, where a run's first steps show that a setting left at its default decides how it goes.

Three things are looked at, all of which every rank knows without asking the others: whether tokens or convolutions go
by K-FAC, how much KL clipping shortens steps, and whether curvature turns gradients at all.
"""

import math
import statistics
from collections.abc import Mapping

from torch import nn

from hpcopt.shapes.stats import Rows
from hpcopt.solvers.kaisa.kinds import of_matrices
from hpcopt.solvers.kaisa.methods import METHODS
from hpcopt.solvers.kaisa.preconditioner import Kaisa

LOOKED_AT = 20  # steps
LATEST = 1000  # step before which the look begins
SHORT = 0.5  # steps clipped to less of their length are too many if they are nine tenths
STRAIGHT = 0.98  # cosine of what was preconditioned and the gradient from which this is next to plain SGD
ADAMW = '[solver.optimizer] name = "adamw", lr = 0.003, and tune step_lr'
QUICKER = {  # than K-FAC, by the method that auto takes of most matrices
    "muon": "the model has an embedding, and its matrices go by K-FAC: on tokens Muon is quicker. Set method = "
    f'"auto", step_lr = 0.01 and {ADAMW}',
    "newton_muon": "the model has convolutions, and its matrices go by K-FAC: on these Newton-Muon is quicker. Set "
    f'method = "auto", step_lr = 0.08, factor_every = 5, inverse_every = 5 and {ADAMW}',
}


class Advice(Rows):
    """Settings, and why to change them."""

    def lines(self) -> list[str]:
        return [f"advice: {text}" for text in self.values["advice"]]


class Adviser:
    """Looks at twenty steps after a tenth of the run."""

    def __init__(self, kaisa: Kaisa, model: nn.Module, named: frozenset[str], total_steps: int) -> None:
        """``named``: settings that the job has, of which nothing is said."""
        self._kaisa, self._model, self._named = kaisa, model, named
        self._first = min(total_steps // 10, LATEST)
        self._clips: list[float] = []
        self._cosines: list[float] = []
        self._natural = [layer for layer in kaisa.layers.found if METHODS[layer.method][0].natural]

    def after_step(self) -> Mapping[str, Advice]:
        """Give the tables of the step that is done."""
        if not self._natural or not self._first < self._kaisa.steps <= self._first + LOOKED_AT:
            return {}
        cosines = (self._kaisa.cosines[layer.name] for layer in self._natural if layer.a.blocks)
        self._cosines += [cosine for cosine in cosines if not math.isnan(cosine)]
        self._clips.append(self._kaisa.clipped)
        if len(self._clips) < LOOKED_AT:
            return {}
        found = {setting: text for setting, text in self._texts().items() if text}
        return {"advice": Advice({"setting": list(found), "advice": list(found.values())})} if found else {}

    def _texts(self) -> dict[str, str]:
        """By setting; empty where there is nothing to say."""
        said = {"method": self._on_method, "kl_clip": self._on_clip, "damping": self._on_damping}
        return {setting: text() for setting, text in said.items() if setting not in self._named}

    def _on_method(self) -> str:
        return "" if "methods" in self._named else QUICKER.get(of_matrices(self._model, narrow=False), "")

    def _on_clip(self) -> str:
        kl_clip, shortened = self._kaisa.settings.kl_clip, sum(clip < SHORT for clip in self._clips)
        if kl_clip is None or shortened < 0.9 * LOOKED_AT:
            return ""
        return (
            f"kl_clip = {kl_clip:g} shortened {shortened} of {LOOKED_AT} steps, half of them to less than "
            f"{statistics.median(self._clips):.2g} of their length: it, not the learning rate, says how far they go. "
            f"Tune it in the rate's place: try {4 * kl_clip:g} first"
        )

    def _on_damping(self) -> str:
        cosine = statistics.median(self._cosines) if self._cosines else 0.0
        if cosine <= STRAIGHT:
            return ""
        return (
            f"damping = {self._kaisa.damping:g} is far above the curvature: the median cosine of gradients and what "
            f"K-FAC makes of them is {cosine:.3f}, which is next to plain SGD. If the loss is a mean over pixels or "
            "tokens, set terms_per_sample to how many a sample has; if not, lower damping"
        )
