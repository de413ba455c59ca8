"""Pictures of what a network answers to, each a piece of a batch's work."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.analysis.explain import ascent
from hpcopt.analysis.explain.batch import Batch
from hpcopt.analysis.explain.layers import map_layer
from hpcopt.analysis.explain.question import Question
from hpcopt.errors import JobError
from hpcopt.seeds import EVERY_RANK, derive

FILTERS = 16  # of a layer that are shown
CLASSES = 16
INPUTS = 4  # that are dreamt of, and inverted
PROTOTYPES = 8
CANDIDATES = 1024  # inputs that prototypes are chosen among
FAINT = 0.1  # of the range of inputs: the noise that an ascent starts from

Made = tuple[Tensor, str]  # an image (1, channels, height, width), and its caption


def require_images(question: Question) -> None:
    """Raise JobError where a network has no images to make pictures of."""
    if question.x.dim() != 4:
        raise JobError("pictures are of networks of images, (channels, height, width): leave --pictures")
    map_layer(question, "pictures")


def count(batch: Batch, kind: str) -> int:
    """How many pictures of a kind there are."""
    if kind == "layer":
        return 1
    if kind in ("dream", "inversion"):
        return min(INPUTS, len(batch.rows))
    if kind == "prototypes":
        return min(PROTOTYPES, len(batch.rows))
    question, numbers = _first(batch)
    if kind == "logit":
        return min(CLASSES, numbers.shape[1])
    layer = map_layer(question, kind)
    return min(FILTERS, ascent.features_of(question.model, layer, [question.x[:1]]).shape[1])


def picture(batch: Batch, kind: str, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One of them, as a piece: its image and its caption."""
    question, _ = _first(batch)
    question = replace(question, layer=map_layer(question, kind))
    image, caption = KINDS[kind](batch, question, number)
    return {"image": image.numpy()}, {"caption": caption, "kind": kind}


def _logit(batch: Batch, q: Question, number: int) -> Made:
    classes = batch.source.subject.classes
    name = classes[number] if number < len(classes) else str(number)
    return _ascended(batch, q, q.model, ascent.one_class(number), f"logit {number}"), f"most of class {name}"


def _filter(batch: Batch, q: Question, number: int) -> Made:
    caption = f"most of filter {number} of {_name(q)}"
    return _ascended(batch, q, _layer(q), ascent.one_filter(number), f"filter {number}"), caption


def _whole(batch: Batch, q: Question, _: int) -> Made:
    return _ascended(batch, q, _layer(q), ascent.whole_layer, "layer"), f"most of all of {_name(q)}"


def _dream(batch: Batch, q: Question, number: int) -> Made:
    image, row = _input(batch, number)
    return ascent.dreamt(q.model, _layer(q), image), f"row {row}, as {_name(q)} dreams of it"


def _inversion(batch: Batch, q: Question, number: int) -> Made:
    image, row = _input(batch, number)
    start = _noise(batch, image, f"inversion {row}")
    return ascent.inverted(q.model, _layer(q), image, start), f"what {_name(q)} cannot tell from row {row}"


def _prototype(batch: Batch, q: Question, number: int) -> Made:
    blocks = [batch.source.read(rows) for rows in batch.source.blocks(batch.rows[:CANDIDATES])]
    features = torch.cat([ascent.features_of(q.model, _layer(q), [block.x]).mean((2, 3)) for block in blocks])
    place = ascent.prototypes(features, number + 1)[number]
    row = int(batch.rows[place])
    return torch.cat([block.x for block in blocks])[place][None], f"prototype {number + 1}: row {row}"


KINDS: dict[str, Callable[[Batch, Question, int], Made]] = {
    "logit": _logit,
    "filter": _filter,
    "layer": _whole,
    "dream": _dream,
    "inversion": _inversion,
    "prototypes": _prototype,
}


def _ascended(batch: Batch, q: Question, layer: nn.Module, aim: ascent.Aim, purpose: str) -> Tensor:
    limits = float(q.x.min()), float(q.x.max())
    return ascent.maximised(q.model, layer, aim, _noise(batch, q.x[:1], purpose), limits)


def _noise(batch: Batch, like: Tensor, purpose: str) -> Tensor:
    generator = torch.Generator().manual_seed(derive(batch.seed, 0, EVERY_RANK, purpose))
    return like.mean() + FAINT * float(like.max() - like.min()) * torch.randn(like.shape, generator=generator)


def _first(batch: Batch) -> tuple[Question, Tensor]:
    return batch.question(batch.source.read(batch.source.blocks(batch.rows)[0]))


def _input(batch: Batch, number: int) -> tuple[Tensor, int]:
    """An image (1, ...), and its row."""
    row = int(batch.rows[number])
    block = next(rows for rows in batch.source.blocks(batch.rows) if row in rows)
    return batch.source.read(block).x[np.flatnonzero(block == row)], row


def _layer(q: Question) -> nn.Module:
    assert q.layer is not None
    return q.layer


def _name(q: Question) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in q.model.named_modules()}
    return f"layer {names[_layer(q)].removeprefix('network.')}"
