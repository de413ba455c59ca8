"""Many inputs by many methods, dealt over ranks.

The work is cut into pieces, one method on one block of inputs, which are the same for any number of ranks; what is
drawn at random is decided by the number of the input. So the result has the same bits on 1 rank or 100, and after a
kill.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hpcopt.analysis.explain.layers import layer_named
from hpcopt.analysis.explain.question import USUAL, Question, Settings, checked
from hpcopt.analysis.explain.sources import Source
from hpcopt.analysis.explain.subject import UNKNOWN, Inputs
from hpcopt.errors import JobError
from hpcopt.store.weights import digest_of

Target = Literal["predicted", "label"] | int


@dataclass(frozen=True)
class Batch:
    """What is asked.

    Attributes:
        source: the network and its inputs.
        rows: which of them, in order, each once.
        methods: names of METHODS.
        target: the class that each input is asked about: which the network gives it, which it has, or one for all.
        layer: of class activation maps; None for the last one that gives maps.
        baseline: number, of tokens a token's, that stands for "not there"; None for the subject's own.
        seed: of what is drawn.
        settings: how thoroughly.
        curves: of how many of the inputs, the first ones, there are deletion and insertion curves.
        scored: of how many there are scores.
        pictures: kinds of pictures of what layers answer to, names of ``gallery.KINDS``.
    """

    source: Source
    rows: np.ndarray
    methods: tuple[str, ...]
    target: Target = "predicted"
    layer: str | None = None
    baseline: float | None = None
    seed: int = 0
    settings: Settings = USUAL
    curves: int = 64
    scored: int = 8
    pictures: tuple[str, ...] = ()

    def asked(self) -> dict[str, Any]:
        """What decides the results, as plain data."""
        return {
            "baseline": self.baseline,
            "curves": self.curves,
            "layer": self.layer,
            "methods": list(self.methods),
            "pictures": list(self.pictures),
            "rows": _digest(self.rows),
            "scored": self.scored,
            "seed": self.seed,
            "settings": self.settings.model_dump(),
            "source": self.source.subject.name,
            "inputs": _digest(self.source.read(self.source.blocks(self.rows)[0]).x.numpy()),
            "target": self.target,
            "weights": digest_of(self.source.subject.network.state_dict()),
        }

    def question(self, inputs: Inputs) -> tuple[Question, Tensor]:
        """What a method is asked about inputs, and what the network gives them, (n, classes).

        Raises:
            DataError: they do not go through the network.
            JobError: a layer or a class is not there.
        """
        subject = self.source.subject
        question = Question(
            model=subject.model,
            x=inputs.x,
            target=torch.zeros(len(inputs), dtype=torch.int64),
            baseline=subject.nothing(self.baseline, inputs.x),
            parts=subject.parts(inputs.x, self.settings.patch),
            extra=inputs.extra,
            layer=None if self.layer is None else layer_named(subject.network, self.layer),
            settings=self.settings,
        )
        checked(question)
        with torch.no_grad():
            numbers = question.forward(inputs.x)
        return checked(dataclasses.replace(question, target=self._target(inputs, numbers))), numbers

    def _target(self, inputs: Inputs, numbers: Tensor) -> Tensor:
        if self.target == "predicted":
            return numbers.argmax(1)
        if isinstance(self.target, int):
            return torch.full((len(inputs),), self.target)
        if (inputs.labels == UNKNOWN).any():
            raise JobError("target label: these inputs have no classes of their own; say predicted, or a number")
        return inputs.labels


def _digest(array: np.ndarray) -> str:
    found = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
