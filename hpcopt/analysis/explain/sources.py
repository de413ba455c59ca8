"""Where a subject and its inputs come from: a run and its test split, or a network by its dotted name and files."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.analysis.explain.files import read_files
from hpcopt.analysis.explain.forms import Form, OneInput, form_of
from hpcopt.analysis.explain.subject import Inputs, Subject
from hpcopt.errors import CheckpointError, DataError, JobError
from hpcopt.runs import Run
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.workload import Workload
from hpcopt.store.weights import newest_weights
from hpcopt.workloads.bert_pretraining import BertPretrainingConfig
from hpcopt.workloads.images import ImageWorkload
from hpcopt.workloads.own.user_code import made, require_network

BLOCK = 32  # inputs that are explained together; a block gives the same bits on any rank


class Source(Protocol):
    """A subject, and its inputs by number.

    Attributes:
        samples: how many inputs there are.
    """

    samples: int

    @property
    def subject(self) -> Subject:
        """What is explained."""

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows, in order, cut into what is read and explained together."""

    def read(self, rows: np.ndarray) -> Inputs:
        """The inputs of one of the blocks."""


class OfRun:
    """A run's network, with its test samples or with files."""

    def __init__(self, run: Run) -> None:
        """Open the data and take the network out of the newest checkpoint.

        Raises:
            DataError, JobError, CheckpointError: as of ``Run``; or the network has more than one input.
        """
        config = run.job.workload
        self.workload: Workload = config.build(Context(run_seed=run.job.run.seed))
        words = config.words() if isinstance(config, BertPretrainingConfig) else []
        self.form = form_of(self.workload, run.model, str(run.directory.path), words)

    @property
    def subject(self) -> Subject:
        return self.form.subject


class TestSplit(OfRun):
    """The test samples of a run's workload."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if self.workload.test_samples is None:
            raise JobError("nobody knows how many test samples a stream has: say [workload] test_samples, or --inputs")
        self.samples: int = self.workload.test_samples

    @cached_property
    def _firsts(self) -> np.ndarray:
        """First row of the part that each of many ranks would get: so any workload gives a few rows without others."""
        ranks = max(1, -(-self.samples // BLOCK))
        return np.cumsum([0, *(len(part) for part in np.array_split(np.arange(self.samples), ranks)[:-1])])

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        parts = np.split(rows, np.searchsorted(rows, self._firsts[1:]))
        return [part for part in parts if len(part)]

    def read(self, rows: np.ndarray) -> Inputs:
        piece = int(np.searchsorted(self._firsts, rows[0], side="right")) - 1
        batches = list(self.workload.test_batches(piece, len(self._firsts)))
        tensors = {name: torch.cat([batch.tensors[name] for batch in batches]) for name in batches[0].tensors}
        places = torch.from_numpy(rows - self._firsts[piece])
        return self.form(TensorBatch({n: t[places] for n, t in tensors.items()}, torch.from_numpy(rows), len(rows)))


class Files:
    """Inputs of files, for a run's network or another."""

    def __init__(self, form: Form, tensors: Mapping[str, Tensor]) -> None:
        self._form, self._tensors = form, tensors
        self.samples = len(next(iter(tensors.values())))

    @property
    def subject(self) -> Subject:
        return self._form.subject

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK)]

    def read(self, rows: np.ndarray) -> Inputs:
        numbers = torch.from_numpy(rows)
        return self._form(TensorBatch({n: t[numbers] for n, t in self._tensors.items()}, numbers, len(rows)))


def files_for_run(run: Run, paths: Sequence[Path]) -> Files:
    """Files as inputs of a run's network; pictures are scaled as the run's own images are.

    Raises:
        DataError: they cannot be read, or have another shape than the run's inputs.
    """
    of = OfRun(run)
    if not isinstance(of.form, OneInput):
        raise DataError(
            "inputs of files are for networks of one input: leave --inputs, and the test split is explained"
        )
    shape = tuple(of.form.example.shape[1:])
    found = read_files(paths, shape[0] if len(shape) == 3 else 1)
    if tuple(found.shape[1:]) != shape:
        raise DataError(f"{paths[0]} has inputs of shape {tuple(found.shape[1:])}, and the run's network takes {shape}")
    if isinstance(of.workload, ImageWorkload) and found.dtype == torch.uint8:
        return Files(of.form, {"images": found})
    plain = OneInput(
        of.subject.network, lambda batch: batch.tensors["inputs"], of.form.example, of.subject.name, of.subject.classes
    )
    return Files(plain, {"inputs": _as_taken(found)})


def files_for_network(name: str, arguments: Mapping[str, Any], weights: Path, paths: Sequence[Path]) -> Files:
    """Files as inputs of a network that a dotted name stands for.

    Args:
        name: "package.module:Network", a class or function that gives a torch.nn.Module, or one.
        arguments: what it is called with.
        weights: a safetensors file with its ``state_dict``, or a run directory.
        paths: of the files.

    Raises:
        JobError: the name stands for no network.
        CheckpointError: the weights cannot be read or are of another network.
        DataError: the inputs cannot be read or do not go through.
    """
    network = made(name, arguments, f'the network "{name}"', JobError)
    if not isinstance(network, nn.Module):
        raise JobError(f'"{name}" gave {type(network).__name__}, not a torch.nn.Module')
    require_network(network, f'the network "{name}"')
    load(network, weights)
    found = _as_taken(read_files(paths, 3))
    return Files(
        OneInput(network.eval(), lambda batch: batch.tensors["inputs"], found[:1], name, []), {"inputs": found}
    )


def load(network: nn.Module, weights: Path) -> None:
    """Give a network its weights.

    Raises:
        CheckpointError: they cannot be read or are of another network.
    """
    if weights.is_dir():
        found = newest_weights(weights).state_dict
    else:
        from safetensors.torch import load_file

        try:
            found = load_file(weights)
        except Exception as cause:  # the library has an error class of its own for each kind of damage
            raise CheckpointError(
                f"cannot read weights from {weights}, which should be safetensors: {cause}"
            ) from cause
    try:
        network.load_state_dict(found)
    except RuntimeError as cause:
        raise CheckpointError(f"{weights} holds another network: {cause}") from cause


def _as_taken(inputs: Tensor) -> Tensor:
    """Pictures between 0 and 1; other numbers as they are."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def chosen_rows(text: str | None, samples: int) -> np.ndarray:
    """The rows that "0:100", "3,5,8" or both together stand for, in order, each once; all, if there is no text.

    Raises:
        JobError: it says nothing of the kind, or there are no such rows.
    """
    if text is None:
        return np.arange(samples)
    found: list[int] = []
    for part in text.split(","):
        first, colon, stop = part.strip().partition(":")
        if not all(end.isdecimal() for end in (first, stop) if end) or not (first or colon):
            raise JobError(f'rows "{text}": say "0:100", or "3,5,8"')
        begin = int(first or 0)
        found += range(begin, int(stop) if stop else samples) if colon else [begin]
    rows = np.unique(np.array(found, np.int64))
    if not len(rows) or rows[-1] >= samples:
        raise JobError(f'rows "{text}": there are rows 0 to {samples - 1}')
    return rows
