"""Samples of any structure as tensors by name, and back.

A sample is a tuple whose last entry is the target and whose others are the network's arguments; or a dictionary, one
key of which is the target and the others are the network's keyword arguments; or one array, which is its own target.
Entries are tensors, arrays, numbers, lists of numbers, or tuples and dictionaries of these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcopt.errors import DataError

INPUTS, TARGETS = "inputs", "targets"
Form = Any  # of a structure: dictionaries and tuples of the names of its tensors


def parts(sample: Any, target: str) -> tuple[Any, Any]:
    """Inputs and targets of a sample, or of a batch of them.

    Raises:
        DataError: it is a dictionary without the key ``target``.
    """
    if isinstance(sample, Mapping):
        if target not in sample:
            raise DataError(
                f'has keys {", ".join(map(str, sample))}, not "{target}": name that of its target, targets = "..."'
            )
        return {key: value for key, value in sample.items() if key != target}, sample[target]
    if isinstance(sample, tuple | list) and not _numbers(sample):
        if len(sample) < 2:
            raise DataError(f"is a {type(sample).__name__} of {len(sample)}, not inputs and a target")
        return sample[0] if len(sample) == 2 else tuple(sample[:-1]), sample[-1]
    return sample, None


def tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a structure by name.

    Raises:
        DataError: something in it is no number.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors(inner, f"{name}.{key}")
    elif isinstance(value, tuple | list) and not _numbers(value):
        for number, inner in enumerate(value):
            yield from tensors(inner, f"{name}.{number}")
    elif value is not None:
        yield name, _tensor(value, name)


def form(value: Any, name: str) -> Form:
    """The form of a structure, for ``fill``."""
    if isinstance(value, Mapping):
        return {key: form(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, tuple | list) and not _numbers(value):
        return tuple(form(inner, f"{name}.{number}") for number, inner in enumerate(value))
    return None if value is None else name


def fill(form: Form, values: Mapping[str, Tensor]) -> Any:
    """A structure from its form and tensors by name."""
    if isinstance(form, dict):
        return {key: fill(inner, values) for key, inner in form.items()}
    if isinstance(form, tuple):
        return tuple(fill(inner, values) for inner in form)
    return None if form is None else values[form]


@dataclass(frozen=True)
class Layout:
    """What all samples of a data set have in common.

    Attributes:
        target: key of the target in samples that are dictionaries.
        collate: makes a batch of a list of samples; None: they are stacked, and must be of one shape each.
        inputs, targets: form of either.
        kinds: shape and dtype of each tensor of a sample.
    """

    target: str
    collate: Callable[[list[Any]], Any] | None
    inputs: Form
    targets: Form
    kinds: Mapping[str, tuple[torch.Size, torch.dtype]]

    @staticmethod
    def of(sample: Any, target: str, collate: Callable[[list[Any]], Any] | None) -> "Layout":
        """As one sample has it."""
        inputs, targets = parts(sample if collate is None else collate([sample]), target)
        found = {**dict(tensors(inputs, INPUTS)), **dict(tensors(targets, TARGETS))}
        if not found:
            raise DataError("has nothing in it")
        kinds = {name: (value.shape, value.dtype) for name, value in found.items()}
        return Layout(
            target, collate, form(inputs, INPUTS), INPUTS if targets is None else form(targets, TARGETS), kinds
        )

    def words(self) -> str:
        """The names of its tensors."""
        return " and ".join(self.kinds)

    def batch(self, samples: Sequence[Any], numbers: Sequence[int]) -> dict[str, Tensor]:
        """Tensors by name, each with the samples along its first dimension.

        Raises:
            DataError: a sample is not like the others.
        """
        if self.collate is not None:
            return self._collated(self.collate(list(samples)), len(samples))
        rows = [self._row(sample, number) for sample, number in zip(samples, numbers, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in self.kinds}

    def _row(self, sample: Any, number: int) -> dict[str, Tensor]:
        try:
            inputs, targets = parts(sample, self.target)
            row = {**dict(tensors(inputs, INPUTS)), **dict(tensors(targets, TARGETS))}
        except DataError as error:
            raise DataError(f"sample {number} {error}") from None
        if row.keys() != self.kinds.keys():
            raise DataError(f"sample {number} has {', '.join(row)}, the first one {', '.join(self.kinds)}")
        for name, value in row.items():
            shape, dtype = self.kinds[name]
            if (value.shape, value.dtype) != (shape, dtype):
                raise DataError(
                    f"sample {number} has {name} of shape {tuple(value.shape)}, {value.dtype}, the first one "
                    f'of shape {tuple(shape)}, {dtype}: make them alike, or put them together with collate = "..."'
                )
        return row

    def _collated(self, batch: Any, rows: int) -> dict[str, Tensor]:
        inputs, targets = parts(batch, self.target)
        found = {**dict(tensors(inputs, INPUTS)), **dict(tensors(targets, TARGETS))}
        for name, value in found.items():
            if value.dim() == 0 or len(value) != rows:
                raise DataError(
                    f"collate gave {name} of shape {tuple(value.shape)} for {rows} samples: samples go first"
                )
        return found


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, int | float) for v in value)


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray | np.generic) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f'has {type(value).__name__} as {name}: tensors, arrays and numbers make a batch, or collate = "..."'
        ) from None
