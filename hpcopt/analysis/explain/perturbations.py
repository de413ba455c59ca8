"""Explanations by leaving parts of an input out: the model is only called, so it may be anything."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hpcopt.analysis.explain.question import Question
from hpcopt.analysis.explain.surrogate import Surrogate, neighbours

SURE = 1e6  # weight of nothing and of all, which a Shapley value has to meet exactly
ALL_PAIRS = 24  # parts up to which CLE takes every pair of them, as columns of a table have no neighbours


def ablation(q: Question) -> Tensor:
    """By how much the class's number falls without each part, by itself."""
    from captum.attr import FeatureAblation

    found: Tensor = FeatureAblation(q.model).attribute(
        q.x,
        baselines=q.baseline.expand_as(q.x),
        feature_mask=q.parts,
        perturbations_per_eval=_at_once(q),
        **q.arguments(),
    )
    return found


def occlusion(q: Question) -> Tensor:
    """Likewise without the values in a window, which slides by half its side (Zeiler and Fergus 2013, arXiv:1311.2901):
    the mean over the windows that a value is in. In a sequence the window is a token, in a table a column.
    """
    from captum.attr import Occlusion

    side = q.settings.patch
    window: tuple[int, ...] = (1, *q.x.shape[2:])
    stride = window
    if q.x.dim() == 4:
        channels, height, width = q.x.shape[1:]
        window = (channels, min(side, height), min(side, width))
        stride = (channels, max(1, window[1] // 2), max(1, window[2] // 2))
    found: Tensor = Occlusion(q.model).attribute(
        q.x,
        sliding_window_shapes=window,
        strides=stride,
        baselines=q.baseline.expand_as(q.x),
        perturbations_per_eval=_at_once(q),
        **q.arguments(),
    )
    return found


def lime(q: Question) -> Tensor:
    """A linear surrogate near the input (Ribeiro et al. 2016, arXiv:1602.04938), of one input at a time."""
    from captum.attr import Lime

    return _fitted(Lime(q.model, interpretable_model=Surrogate()), q)


def cle(q: Question) -> Tensor:
    """LIME whose surrogate has products of neighbouring parts too, or of all where they are few (Yang et al. 2019,
    arXiv:1911.01005); each part of a pair gets half of what the pair adds.
    """
    from captum.attr import Lime

    count = _count(q)
    pairs = list(itertools.combinations(range(count), 2)) if count <= ALL_PAIRS else neighbours(q.parts)
    return _fitted(Lime(q.model, interpretable_model=Surrogate(pairs)), q)


def kernel_shap(q: Question) -> Tensor:
    """Shapley values by regression (Lundberg and Lee 2017, arXiv:1705.07874), of one input at a time.

    Where the settings allow as many samples as there are coalitions of parts, each is asked once, with its weight, and
    the values are exact; else coalitions are drawn.
    """
    from captum.attr import KernelShap, Lime

    count = _count(q)
    if count == 1:  # it takes all there is; the regression's weights have no such case
        return ablation(q)
    if 2**count > q.settings.samples:
        method: Any = KernelShap(q.model)
        method.interpretable_model = Surrogate(ridge=0.0)
        return _fitted(method, q)
    exact = Lime(q.model, Surrogate(ridge=0.0), similarity_func=_shapley_weight, perturb_func=_coalitions)
    return _fitted(exact, q, 2**count)


def _fitted(method: Any, q: Question, samples: int | None = None) -> Tensor:
    found: Tensor = method.attribute(
        q.x,
        baselines=q.baseline,
        feature_mask=q.parts,
        n_samples=samples or q.settings.samples,
        perturbations_per_eval=q.settings.evaluations,
        return_input_shape=False,
        **q.arguments(),
    )
    return found.reshape(-1)[q.parts].to(q.x.dtype)


def _coalitions(_: Tensor, *, num_interp_features: int, **__: object) -> Iterator[Tensor]:
    """All of them, each (1, parts)."""
    for number in range(2**num_interp_features):
        yield torch.tensor([[number >> part & 1 for part in range(num_interp_features)]])


def _shapley_weight(_: Tensor, __: Tensor, there: Tensor, *, num_interp_features: int, **___: object) -> Tensor:
    size = int(there.sum())
    if size in (0, num_interp_features):
        return torch.tensor([SURE])
    coalitions = math.comb(num_interp_features, size)
    return torch.tensor([(num_interp_features - 1) / (coalitions * size * (num_interp_features - size))])


def _count(q: Question) -> int:
    return int(q.parts.max()) + 1


def _at_once(q: Question) -> int:
    """Perturbations of each input of a batch that go through the network together."""
    return max(1, q.settings.evaluations // len(q))
