"""Which modules K-FAC takes for layers, and why it leaves others to the inner optimizer.

A layer's statistics hold for one formula, its class's own ``forward`` on parameters of its own. A subclass with another
``forward``, or a weight that is computed from other parameters (``weight_norm``, ``orthogonal``, pruning), has another
formula, whatever its class is called.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.parameter import UninitializedParameter

from hpcopt.errors import JobError
from hpcopt.solvers.kaisa.layers.conv import Conv
from hpcopt.solvers.kaisa.layers.embedding import Embedding
from hpcopt.solvers.kaisa.layers.layer import Layer
from hpcopt.solvers.kaisa.layers.norm import ScaleShift

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

KINDS: list[tuple[tuple[type[nn.Module], ...], Callable[..., Layer]]] = [
    ((nn.Linear,), Layer),
    (CONVOLUTIONS, Conv),
    ((nn.Embedding,), Embedding),
    ((nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), ScaleShift),
]

COMPUTED = "its weight is computed from other parameters"
FROZEN, PARTLY_FROZEN = "frozen", "part of it is frozen"


def kind_of(module: nn.Module) -> Callable[..., Layer] | str:
    """The layer to make of a module with a weight, or why there is none."""
    for classes, kind in KINDS:
        known = next((c for c in classes if isinstance(module, c)), None)
        if known is not None:
            return why_not(module, known, "weight", "bias") or kind
    return f"{type(module).__name__} is not known"


def why_not(module: nn.Module, known: type[nn.Module], *names: str) -> str:
    """Why a module of class ``known`` with parameters of these names, any of which may be None, is none of K-FAC's; ""
    if it is.
    """
    own = dict(module.named_parameters(recurse=False))
    if _has_another_forward(module, known):
        return f"{type(module).__name__} has a forward of its own"
    if any(getattr(module, name, None) is not own.get(name) for name in names) or set(own) - set(names):
        return COMPUTED
    if any(p.numel() == 0 for p in own.values()):
        return "it has no values"
    if getattr(module, "sparse", False):
        return "its gradient is sparse"
    trained = [p.requires_grad for p in own.values()]
    if not all(trained):
        return PARTLY_FROZEN if any(trained) else FROZEN
    return ""


def require_shapes(model: nn.Module) -> None:
    """Check that no parameter still waits for a first batch to get its shape.

    Raises:
        JobError: one does.
    """
    for name, p in model.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise JobError(f"{name} has no shape yet: run a batch through the model before Kaisa is made").everywhere()


def _has_another_forward(module: nn.Module, known: type[nn.Module]) -> bool:
    return "forward" in vars(module) or any(
        getattr(type(module), name, None) is not getattr(known, name, None) for name in ("forward", "_conv_forward")
    )
