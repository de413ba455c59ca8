"""The pieces of a batch's work, dealt over ranks: one method on one block of inputs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hpcopt.analysis.explain import gallery
from hpcopt.analysis.explain.batch import Batch
from hpcopt.analysis.explain.curves import POINTS, Curves, curves, random_curves
from hpcopt.analysis.explain.methods import METHODS, explain, row_seeds
from hpcopt.analysis.explain.parts import Parts
from hpcopt.analysis.explain.scores import SCORES, scores
from hpcopt.comm.world import World
from hpcopt.seeds import EVERY_RANK, derive

INPUTS = "inputs"
Arrays = dict[str, np.ndarray]


def work(batch: Batch, parts: Parts, world: World, stopped: Callable[[], bool]) -> bool:
    """Do the pieces that are not there yet, this rank its share; gives whether all ranks came to the end. Collective.

    Args:
        batch: what is asked.
        parts: where the pieces go; begun.
        world: the ranks.
        stopped: whether this rank has been told to leave; it is asked before each piece.

    Raises:
        DataError, JobError: on all ranks, what some have met.
    """
    left = [(name, number) for name, number in pieces(batch) if not parts.has(piece_name(name, number))]
    world.barrier()  # all have looked before anybody writes
    ended = True
    with world.together():
        for name, number in left[world.rank :: world.size]:
            if stopped():
                ended = False
                break
            parts.write(piece_name(name, number), *_piece(batch, name, number))
    return world.sum([ended])[0] == world.size


def pieces(batch: Batch) -> list[tuple[str, int]]:
    """All: a method, or the inputs themselves, and the number of a block; a kind of pictures, and which of them."""
    blocks = len(batch.source.blocks(batch.rows))
    found = [(name, number) for name in (INPUTS, *batch.methods) for number in range(blocks)]
    return found + [(kind, number) for kind in batch.pictures for number in range(gallery.count(batch, kind))]


def piece_name(name: str, number: int) -> str:
    """Of the file of a piece."""
    return f"{name}-{number:05d}"


def _piece(batch: Batch, name: str, number: int) -> tuple[Arrays, dict[str, Any]]:
    if name in gallery.KINDS:
        return gallery.picture(batch, name, number)
    rows = batch.source.blocks(batch.rows)[number]
    return _inputs(batch, rows) if name == INPUTS else _method(batch, name, rows)


def _inputs(batch: Batch, rows: np.ndarray) -> tuple[Arrays, dict[str, Any]]:
    """What the inputs look like, what the network gives them, and the curves of random rankings."""
    inputs = batch.source.read(rows)
    question, numbers = batch.question(inputs)
    arrays = {
        "row": rows,
        "shown": inputs.shown.numpy(),
        "label": inputs.labels.numpy(),
        "target": question.target.numpy(),
        "predicted": numbers.argmax(1).numpy(),
        "probability": numbers.softmax(1).gather(1, question.target[:, None])[:, 0].numpy(),
    }
    first = range(_among(batch, rows, batch.curves))
    return arrays | _as_arrays([random_curves(question.row(n), _ranking(batch, rows[n])) for n in first]), {}


def _method(batch: Batch, name: str, rows: np.ndarray) -> tuple[Arrays, dict[str, Any]]:
    """What a method says of inputs, and how good that is of the first of them."""
    question, _ = batch.question(batch.source.read(rows))
    started_s = time.perf_counter()
    attribution = explain(
        name,
        question.model,
        question.x,
        question.target,
        question.layer,
        baseline=question.baseline,
        parts=question.parts,
        extra=question.extra,
        seeds=row_seeds(batch.seed, rows.tolist(), name),
        settings=batch.settings,
    )
    seconds = time.perf_counter() - started_s
    told = batch.source.subject.told(attribution).numpy()
    drawn = [
        curves(question.row(n), METHODS[name].ranked(attribution[n : n + 1]), _ranking(batch, rows[n]))
        for n in range(_among(batch, rows, batch.curves))
    ]
    found = [
        scores(
            name,
            question.row(n),
            attribution[n : n + 1],
            derive(batch.seed, int(rows[n]), EVERY_RANK, f"scores {name}"),
        )
        for n in range(_among(batch, rows, batch.scored))
    ]
    scored = {score: np.array([each[score] for each in found], np.float32) for score in SCORES}
    return {"attribution": told, **_as_arrays(drawn), **scored}, {"seconds": seconds}


def _among(batch: Batch, rows: np.ndarray, most: int) -> int:
    """How many of a block's inputs are among the first ``most`` of all."""
    return min(len(rows), max(0, most - int(np.searchsorted(batch.rows, rows[0]))))


def _ranking(batch: Batch, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(batch.seed, int(row), EVERY_RANK, "ranking"))


def _as_arrays(found: list[Curves]) -> Arrays:
    """Curves of inputs, each (1, POINTS), as (n, POINTS)."""
    none = torch.empty(0, POINTS)
    return {name: torch.cat([none, *(getattr(each, name) for each in found)]).numpy() for name in Curves._fields}
