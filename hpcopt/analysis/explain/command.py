"""From what a command line says to results: the steps of ``hpcopt explain``, on every rank."""

import argparse
import importlib.metadata
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from hpcopt.analysis.explain import pieces
from hpcopt.analysis.explain.batch import Batch, Target
from hpcopt.analysis.explain.gallery import KINDS, require_images
from hpcopt.analysis.explain.methods import METHODS, fits, require_captum
from hpcopt.analysis.explain.page import page
from hpcopt.analysis.explain.parts import Parts
from hpcopt.analysis.explain.question import Settings
from hpcopt.analysis.explain.results import read_explanations
from hpcopt.analysis.explain.scores import SCORES
from hpcopt.analysis.explain.sources import Source, TestSplit, chosen_rows, files_for_network, files_for_run
from hpcopt.comm.world import World
from hpcopt.errors import EXIT_DONE, EXIT_REQUEUE, JobError
from hpcopt.report.output import write_out
from hpcopt.runs import open_run
from hpcopt.store import hdf5

RESULTS = "explanations.h5"
SCHEMA_VERSION = 1
LONG_NAMES = {
    "row": "number of the input in the test split or the files",
    "shown": "the input: what the network gets, or the numbers of its tokens",
    "label": "class that the input has, or -1",
    "target": "class that is asked about",
    "predicted": "class that the network gives it",
    "probability": "of the target",
    "attribution": "what each value, token or column counts for the target",
    "deletion": "probability of the target while the places that count most go",
    "insertion": "probability of the target while the places that count most come",
    "image": "input that a layer answers to",
}
ALL = "all"
MOST_ROWS = 64  # where nobody says which


def explain(options: argparse.Namespace, world: World, stopped: Callable[[], bool]) -> int:
    """Do what the options say; give the exit code. Collective.

    Raises:
        HpcoptError: on all ranks.
    """
    with world.together():
        require_captum()
        batch = batch_of(options)
        parts = Parts(out_of(options))
    there = False
    with world.together():
        if world.rank == 0:
            there = parts.begin(batch.asked(), fresh=options.fresh)
    if world.sum([there])[0]:
        _say(world, f"{parts.out} is there already, as it is asked for")
    else:
        _say(world, f"{len(batch.rows)} inputs of {batch.source.subject.name}, by {', '.join(batch.methods)}")
        if not pieces.work(batch, parts, world, stopped):
            _say(world, "stopped before the end; the same command goes on")
            return EXIT_REQUEUE
    with world.together():
        if world.rank == 0:
            if not there:
                join(batch, parts)
            if options.html:
                write_out(options.html, page(read_explanations(parts.out)))
    _say(world, str(parts.out))
    return EXIT_DONE


def join(batch: Batch, parts: Parts) -> None:
    """Make the one file out of all pieces."""
    groups: dict[str, list[str]] = {}
    for name, number in pieces.pieces(batch):
        file = pieces.piece_name(name, number)
        group = f"methods/{name}" if name in METHODS else f"pictures/{file}" if name in KINDS else name
        groups.setdefault(group, []).append(file)
    subject = batch.source.subject
    about: dict[str, dict[str, Any]] = {f"methods/{m}": {"about": METHODS[m].about} for m in batch.methods}
    about["/"] = {
        "Conventions": hdf5.CONVENTIONS,
        "schema_version": SCHEMA_VERSION,
        "title": f"Explanations of {subject.name}",
        "kind": subject.kind,
        "classes": subject.classes,
        "asked": parts.asked,
        "captum": importlib.metadata.version("captum"),
        "quantus": importlib.metadata.version("quantus"),
        "seed": batch.seed,
    }
    if subject.words:
        shown = np.unique(
            np.concatenate([batch.source.read(b).shown.numpy().ravel() for b in batch.source.blocks(batch.rows)])
        )
        about[pieces.INPUTS] = {"token": shown, "word": [subject.words[number] for number in shown]}
    parts.join(groups, about, {**LONG_NAMES, **SCORES})


def batch_of(options: argparse.Namespace) -> Batch:
    """What is asked.

    Raises:
        HpcoptError: it cannot be asked.
    """
    source = source_of(options)
    rows = chosen_rows(options.rows, source.samples)
    batch = Batch(
        source,
        rows if options.rows else rows[:MOST_ROWS],
        (),
        target_of(options.target),
        options.layer,
        options.baseline,
        options.seed,
        settings_of(options),
        options.curves,
        options.scored,
    )
    question, _ = batch.question(source.read(source.blocks(batch.rows)[0]))
    names = [name.strip() for name in options.methods.split(",")]
    if unknown := [name for name in names if name not in (*METHODS, ALL)]:
        raise JobError(f'there is no method "{unknown[0]}"; there are {", ".join(METHODS)}, and {ALL}')
    methods = [m for m in METHODS if m in names or (ALL in names and fits(m, question))]
    kinds = [kind.strip() for kind in options.pictures.split(",")] if options.pictures else []
    if unknown := [kind for kind in kinds if kind not in (*KINDS, ALL)]:
        raise JobError(f'there are no pictures "{unknown[0]}"; there are {", ".join(KINDS)}, and {ALL}')
    pictures = tuple(kind for kind in KINDS if kind in kinds or ALL in kinds)
    if pictures:
        require_images(question)
    return replace(batch, methods=tuple(methods), pictures=pictures)


def source_of(options: argparse.Namespace) -> Source:
    """The network and its inputs.

    Raises:
        HpcoptError: they cannot be had, or options do not go together.
    """
    if ":" in options.subject and not Path(options.subject).exists():
        if not options.weights or not options.inputs:
            raise JobError("a network by its dotted name takes --weights FILE.safetensors and --inputs FILE ...")
        arguments = dict(map(_argument, options.argument))
        return files_for_network(options.subject, arguments, options.weights, options.inputs)
    if options.weights or options.argument:
        raise JobError("--weights and --argument go with a network by its dotted name; a run has its own")
    run = open_run(options.subject)
    return files_for_run(run, options.inputs) if options.inputs else TestSplit(run)


def out_of(options: argparse.Namespace) -> Path:
    """Where the results go: beside a run's other files, if nobody says."""
    if options.out:
        return Path(options.out)
    folder = Path(options.subject)
    return folder / RESULTS if folder.is_dir() else Path(RESULTS)


def target_of(text: str) -> Target:
    """The class that "predicted", "label" or a number stands for.

    Raises:
        JobError: it is none of these.
    """
    match text:
        case "predicted" | "label":
            return text
        case _ if text.lstrip("-").isdecimal():
            return int(text)
    raise JobError(f'target "{text}": say predicted, label, or the number of a class')


def settings_of(options: argparse.Namespace) -> Settings:
    """How thoroughly.

    Raises:
        JobError: a number is out of its range.
    """
    given = {name: getattr(options, name) for name in Settings.model_fields if getattr(options, name) is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from None


def _argument(text: str) -> tuple[str, Any]:
    """A keyword argument: "width=16"."""
    name, equals, value = text.partition("=")
    if not equals:
        raise JobError(f'--argument "{text}": say NAME=VALUE')
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _say(world: World, text: str) -> None:
    if world.rank == 0:
        print(text, flush=True)
