"""The registry of methods that explain an output of a network by parts of its input: ``explain("integrated", ...)``."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpcopt.analysis.explain import cam, gradients, perturbations
from hpcopt.analysis.explain.layers import layer_named
from hpcopt.analysis.explain.question import USUAL, Question, Settings, checked
from hpcopt.errors import DataError, JobError, UnsupportedError
from hpcopt.randomness import drawn_by
from hpcopt.seeds import EVERY_RANK, derive


@dataclass(frozen=True)
class Method:
    """One way to explain.

    Attributes:
        answer: gives what each value of the inputs counts, (n, ...); of maps (n, 1, height, width).
        about: in a few words.
        sampled: whether it draws at random: it then sees one input at a time, with a seed of the input's own.
        maps: whether it needs a convolution.
        slope: whether it says how the number changes with a value, not what the value adds to it: places are then
            ranked by size, since a slope of either sign is looked at.
    """

    answer: Callable[[Question], Tensor]
    about: str
    sampled: bool = False
    maps: bool = False
    slope: bool = False

    def ranked(self, attribution: Tensor) -> Tensor:
        """An attribution as places are ranked by it."""
        return attribution.abs() if self.slope else attribution


METHODS = {
    "saliency": Method(gradients.saliency, "the gradient", slope=True),
    "smooth": Method(gradients.smooth, "the mean gradient at noisy inputs", sampled=True, slope=True),
    "integrated": Method(gradients.integrated, "gradients from the baseline to the input; they add up"),
    "guided": Method(gradients.guided, "the gradient, guided through ReLUs", slope=True),
    "gradient_shap": Method(gradients.gradient_shap, "gradients between baseline and noisy input", sampled=True),
    "grad_cam": Method(cam.grad_cam, "maps of a convolution by their mean gradient", maps=True),
    "grad_cam_pp": Method(cam.grad_cam_pp, "maps of a convolution, each place with its weight", maps=True),
    "score_cam": Method(cam.score_cam, "maps of a convolution by what they let through", maps=True),
    "occlusion": Method(perturbations.occlusion, "without a window that slides"),
    "ablation": Method(perturbations.ablation, "without each part"),
    "lime": Method(perturbations.lime, "a linear surrogate of parts", sampled=True),
    "cle": Method(perturbations.cle, "LIME with products of parts", sampled=True),
    "kernel_shap": Method(perturbations.kernel_shap, "Shapley values of parts", sampled=True),
}


def explain(
    method: str,
    model: nn.Module,
    x: Tensor,
    target: Tensor | int,
    layer: str | nn.Module | None = None,
    *,
    baseline: Tensor | float = 0.0,
    parts: Tensor | None = None,
    extra: Sequence[Tensor] = (),
    seeds: Sequence[int] | None = None,
    settings: Settings | None = None,
) -> Tensor:
    """Say what each value of each input counts for the number that a network gives a class.

    Args:
        method: a name of METHODS.
        model: from x, and ``extra``, to one number a class, (n, classes); in evaluation mode.
        x: inputs, (n, ...), of a floating-point type.
        target: class that is asked about, of each input (n,), int64, or of all.
        layer: for class activation maps; by default the last layer that gives maps.
        baseline: what "not there" is, of the shape of an input or of all inputs, or one number for all values.
        parts: which values are left out together, (1, ...), int64 from 0 on; by default each is a part.
        extra: further arguments of the model, each with n rows.
        seeds: of what is drawn for each input; by default those of ``row_seeds``.
        settings: how thoroughly.

    Returns:
        A tensor of x's shape; of maps (n, 1, height, width).

    Raises:
        DataError: the inputs do not go through the network.
        JobError: there is no such method, layer or class, or the network has nothing that the method needs.
        UnsupportedError: captum is not installed.
    """
    if method not in METHODS:
        raise JobError(f'there is no method "{method}"; there are {", ".join(METHODS)}')
    require_captum()
    question = _question(model, x, target, layer, baseline, parts, extra, settings or USUAL)
    if not len(x):
        return torch.empty_like(x)
    checked(question)
    return _answered(METHODS[method], question, row_seeds(0, range(len(x)), method) if seeds is None else seeds)


def _question(
    model: nn.Module,
    x: Tensor,
    target: Tensor | int,
    layer: str | nn.Module | None,
    baseline: Tensor | float,
    parts: Tensor | None,
    extra: Sequence[Tensor],
    settings: Settings,
) -> Question:
    if not x.is_floating_point():
        raise DataError(f"inputs of {x.dtype} have no gradient: explain their embeddings, see `hpcopt explain`")
    base = torch.as_tensor(baseline, dtype=x.dtype)
    return Question(
        model=model,
        x=x.detach(),
        target=torch.as_tensor(target).expand(len(x)),
        baseline=base if base.dim() == x.dim() else base.expand(1, *x.shape[1:]),
        parts=every_value(x) if parts is None else parts,
        extra=tuple(extra),
        layer=layer_named(model, layer) if isinstance(layer, str) else layer,
        settings=settings,
    )


def _answered(method: Method, question: Question, seeds: Sequence[int]) -> Tensor:
    if method.maps and question.x.dim() != 4:
        raise JobError("class activation maps are of images, (n, channels, height, width): use integrated or lime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum tells of what it sets and takes back
        if not method.sampled:
            return method.answer(question).detach()
        return torch.cat([_drawn(method, question.row(row), seed) for row, seed in enumerate(seeds)])


def _drawn(method: Method, question: Question, seed: int) -> Tensor:
    with drawn_by(seed):
        return method.answer(question).detach()


def fits(method: str, question: Question) -> bool:
    """Whether a network has what a method needs."""
    if METHODS[method].maps:
        return question.x.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in question.model.modules())
    if method == "guided":
        with torch.no_grad(), gradients.GuidedRelus() as mode:
            first = question.row(0)
            first.forward(first.x)
        return bool(mode.relus)
    return True


def row_seeds(seed: int, rows: Sequence[int], method: str) -> list[int]:
    """The seeds of rows for a method: of the row's number, wherever it is computed."""
    return [derive(seed, row, EVERY_RANK, method) for row in rows]


def every_value(x: Tensor) -> Tensor:
    """Parts of one value each, (1, ...)."""
    return torch.arange(x.shape[1:].numel()).reshape(1, *x.shape[1:])


def require_captum() -> None:
    """Say how to install it, where it is not.

    Raises:
        UnsupportedError: it is not.
    """
    try:
        import captum.attr  # noqa: F401
    except ImportError as cause:
        raise UnsupportedError(
            f"explanations need captum ({cause}): `pip install captum`, or the extra `explain`"
        ) from cause
