"""Which method each module goes by, and how it is made."""

import re
from collections.abc import Callable

import torch
from torch import nn

from hpcopt.errors import JobError
from hpcopt.solvers.kaisa.ekfac import Ekfac
from hpcopt.solvers.kaisa.inverse import Cholesky, Eigen
from hpcopt.solvers.kaisa.kinds import by_kind
from hpcopt.solvers.kaisa.kl_shampoo import KlShampoo
from hpcopt.solvers.kaisa.layers.find import UNWATCHED, Choose, Layers
from hpcopt.solvers.kaisa.layers.matrix import Choice
from hpcopt.solvers.kaisa.low_rank import LowRank
from hpcopt.solvers.kaisa.method import Method
from hpcopt.solvers.kaisa.muon import Muon
from hpcopt.solvers.kaisa.newton_muon import NewtonMuon
from hpcopt.solvers.kaisa.settings import DTYPES, KaisaSettings
from hpcopt.solvers.kaisa.shampoo import Shampoo
from hpcopt.solvers.kaisa.soap import Soap


def _dtype(settings: KaisaSettings) -> torch.dtype | None:
    """Of products of whole matrices; None: the layers' own."""
    return None if settings.inverse_dtype == "float32" else DTYPES[settings.inverse_dtype]


METHODS: dict[str, tuple[type[Method], Callable[[KaisaSettings, int], Method]]] = {
    "cholesky": (Cholesky, lambda s, seed: Cholesky(s.damping_of == "layer")),
    "low_rank": (LowRank, lambda s, seed: LowRank(s.rank, seed, s.damping_of == "layer")),
    "eigen": (Eigen, lambda s, seed: Eigen()),
    "ekfac": (Ekfac, lambda s, seed: Ekfac()),
    "muon": (Muon, lambda s, seed: Muon(s.muon, _dtype(s))),
    "newton_muon": (NewtonMuon, lambda s, seed: NewtonMuon(s.newton_muon, _dtype(s))),
    "soap": (Soap, lambda s, seed: Soap(s.soap)),
    "shampoo": (Shampoo, lambda s, seed: Shampoo(s.shampoo)),
    "kl_shampoo": (KlShampoo, lambda s, seed: KlShampoo(s.kl_shampoo)),
}


def chooser(model: nn.Module, settings: KaisaSettings) -> Choose:
    """Says by which method a module goes: that of the first pattern that is found in its name or its class's name.

    Raises:
        JobError: on all ranks: a pattern is found in none, or heads are asked of a method that has none.
    """
    methods, kind = made(settings, seed=0), by_kind(model, _dtype(settings) is not None)

    def choose(name: str, module: nn.Module) -> Choice | None:
        own = (m for pattern, m in settings.methods.items() if _is_found(pattern, name, module))
        method = next(own, kind(module) if settings.method == "auto" else settings.method)
        if method is None:
            return None
        source = methods[method].source
        short = method == "soap" and settings.soap.sides == "short"
        heads = next((n for pattern, n in settings.heads.items() if _is_found(pattern, name, module)), 1)
        if heads > 1 and source not in UNWATCHED:
            raise JobError(f"heads: {name} goes by {method}, which takes its rows together: use skip").everywhere()
        return Choice(method, source, methods[method].whole or source != "activations", short, heads)

    for setting, patterns in (("methods", settings.methods), ("heads", settings.heads)):
        for pattern in patterns:
            if not any(_is_found(pattern, name, module) for name, module in model.named_modules()):
                raise JobError(f'{setting}: "{pattern}" is found in the name and the class of no module').everywhere()
    return choose


def _is_found(pattern: str, name: str, module: nn.Module) -> bool:
    return any(re.search(pattern, text) for text in (name, type(module).__name__))


def whole_steps(model: nn.Module, settings: KaisaSettings) -> list[nn.Parameter]:
    """The parameters whose gradients become whole steps."""
    layers = Layers(model, settings.options(), settings.skip, chooser(model, settings)).found
    return [p for layer in layers if METHODS[layer.method][0].whole for p in layer.parameters()]


def made(settings: KaisaSettings, seed: int) -> dict[str, Method]:
    """All that the settings name, by their names; ``seed`` is that of what they draw at random."""
    return {name: METHODS[name][1](settings, seed) for name in settings.method_names()}
