"""The pieces of a batch's work, dealt over ranks: one method on one block of inputs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hpcopt.analysis.explain import gallery
from hpcopt.analysis.explain.batch import Batch
from hpcopt.analysis.explain.curves import POINTS, Curves, curves, random_curves
from hpcopt.analysis.explain.methods import explain, row_seeds
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
    blocks = batch.source.blocks(batch.rows)
    world.barrier()  # all have looked before anybody writes
    ended = True
    with world.together():
        for name, number in left[world.rank :: world.size]:
            if stopped():
                ended = False
                break
            if name in gallery.KINDS:
                arrays, attributes = gallery.picture(batch, name, number)
            else:
                arrays, attributes = _piece(batch, name, blocks[number])
            parts.write(piece_name(name, number), arrays, attributes)
    return world.sum([ended])[0] == world.size


def pieces(batch: Batch) -> list[tuple[str, int]]:
    """All: a method, or the inputs themselves, and the number of a block; a kind of pictures, and which of them."""
    blocks = len(batch.source.blocks(batch.rows))
    found = [(name, number) for name in (INPUTS, *batch.methods) for number in range(blocks)]
    return found + [(kind, number) for kind in batch.pictures for number in range(gallery.count(batch, kind))]


def piece_name(name: str, number: int) -> str:
    """Of the file of a piece."""
    return f"{name}-{number:05d}"


def _piece(batch: Batch, name: str, rows: np.ndarray) -> tuple[Arrays, dict[str, Any]]:
    inputs = batch.source.read(rows)
    question, numbers = batch.question(inputs)
    first = [question.row(int(row)) for row in np.flatnonzero(np.isin(rows, batch.rows[: batch.scored]))]
    if name == INPUTS:
        arrays = {
            "row": rows,
            "shown": inputs.shown.numpy(),
            "label": inputs.labels.numpy(),
            "target": question.target.numpy(),
            "predicted": numbers.argmax(1).numpy(),
            "probability": numbers.softmax(1).gather(1, question.target[:, None])[:, 0].numpy(),
        }
        return arrays | _as_arrays(
            [random_curves(q, _ranking(batch, r)) for q, r in zip(first, rows, strict=False)]
        ), {}
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
    arrays = {"attribution": batch.source.subject.told(attribution).numpy()}
    answers = list(zip(first, torch.split(attribution, 1), rows.tolist(), strict=False))
    arrays |= _as_arrays([curves(q, a, _ranking(batch, row)) for q, a, row in answers])
    found = [scores(name, q, a, derive(batch.seed, row, EVERY_RANK, f"{name} scored")) for q, a, row in answers]
    return arrays | {s: np.array([each[s] for each in found], np.float32) for s in SCORES}, {"seconds": seconds}


def _ranking(batch: Batch, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(batch.seed, int(row), EVERY_RANK, "ranking"))


def _as_arrays(found: list[Curves]) -> Arrays:
    """Curves of inputs, each (1, POINTS), as (n, POINTS)."""
    none = torch.empty(0, POINTS)
    return {name: torch.cat([none, *(getattr(each, name) for each in found)]).numpy() for name in Curves._fields}
