"""How far a network of ReLU layers is from its teacher, whatever names its units have.

Units of a layer may change places, and a unit of a layer below the last may be scaled if those above make up for it:
the network computes the same. So each layer but the last gets rows of length 1, units are assigned to units by the
Hungarian method, and what is left is the relative error ``|W - W*|_F / |W*|_F`` over all layers. With one layer it is
the least over all permutations; with more, layers are assigned from the first on, so it is never below the least.
"""

import importlib.util
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hpcopt.errors import JobError


def require_scipy() -> None:
    """Raise JobError if there is no Hungarian method here. Nothing is imported."""
    if importlib.util.find_spec("scipy") is None:
        raise JobError("scores against a teacher need scipy: `pip install scipy`, or the extra `teacher`")


def recovery_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> float:
    """Relative error of a student's weights, after its units have found those of the teacher that they are like.

    Args:
        student, teacher: weights of each layer, (units, what comes in), of as many layers and inputs. Where one has
            fewer units than the other, units of zeros are what it lacks.

    >>> import torch
    >>> recovery_error([torch.tensor([[0.0, 3.0], [3.0, 0.0]])], [torch.eye(2)])  # the units of eye(2), too long by 2
    2.0
    """
    ours, theirs = _padded(_normal(student), _normal(teacher))
    missed = 0.0
    for layer, (w, target) in enumerate(zip(ours, theirs, strict=True)):
        units = _assigned(w, target)
        missed += float(np.square(w[units] - target).sum())
        if layer + 1 < len(ours):
            ours[layer + 1] = ours[layer + 1][:, units]
    return float(np.sqrt(missed / sum(float(np.square(target).sum()) for target in theirs)))


def _normal(weights: Sequence[Tensor]) -> list[np.ndarray]:
    """The same network with rows of length 1 below the last layer, float64; a unit of zeros stays one."""
    found = [w.detach().double().cpu().numpy() for w in weights]
    for layer in range(len(found) - 1):
        lengths = np.linalg.norm(found[layer], axis=1)
        found[layer] = found[layer] / np.where(lengths > 0, lengths, 1)[:, None]
        found[layer + 1] = found[layer + 1] * lengths
    return found


def _padded(ours: list[np.ndarray], theirs: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both with as many units in each layer."""
    shapes = [np.maximum(a.shape, b.shape) for a, b in zip(ours, theirs, strict=True)]
    for each in (ours, theirs):
        for layer, (w, shape) in enumerate(zip(each, shapes, strict=True)):
            each[layer] = np.pad(w, [(0, int(m - n)) for m, n in zip(shape, w.shape, strict=True)])
    return ours, theirs


def _assigned(w: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Which row of w stands for each row of the target, (units,)."""
    from scipy.optimize import linear_sum_assignment  # heavy, and only where there is something to score

    costs = np.square(w[:, None] - target[None]).sum(-1)
    rows, columns = linear_sum_assignment(np.nan_to_num(costs, nan=1e300, posinf=1e300))
    return np.asarray(rows[np.argsort(columns)])
