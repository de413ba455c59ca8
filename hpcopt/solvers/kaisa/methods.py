"""Which method each module goes by, and how it is made."""

import re
from collections.abc import Callable

from torch import nn

from hpcopt.solvers.kaisa.ekfac import Ekfac
from hpcopt.solvers.kaisa.inverse import Cholesky, Eigen
from hpcopt.solvers.kaisa.layers.find import Choose
from hpcopt.solvers.kaisa.layers.matrix import Choice
from hpcopt.solvers.kaisa.low_rank import LowRank
from hpcopt.solvers.kaisa.method import Method
from hpcopt.solvers.kaisa.settings import KaisaSettings

METHODS: dict[str, tuple[type[Method], Callable[[KaisaSettings, int], Method]]] = {
    "cholesky": (Cholesky, lambda s, seed: Cholesky()),
    "low_rank": (LowRank, lambda s, seed: LowRank(s.rank, seed)),
    "eigen": (Eigen, lambda s, seed: Eigen()),
    "ekfac": (Ekfac, lambda s, seed: Ekfac()),
}


def chooser(settings: KaisaSettings) -> Choose:
    """Says by which method a module goes: that of the first pattern that is found in its name or its class's name."""

    def choose(name: str, module: nn.Module) -> Choice:
        texts = name, type(module).__name__
        own = (m for pattern, m in settings.methods.items() if any(re.search(pattern, text) for text in texts))
        method = next(own, settings.method)
        return Choice(method, METHODS[method][0].source)

    return choose


def made(settings: KaisaSettings, seed: int) -> dict[str, Method]:
    """All that the settings name, by their names; ``seed`` is that of what they draw at random."""
    return {name: METHODS[name][1](settings, seed) for name in settings.method_names()}
