"""What a method is asked: about which outputs of which network, at which inputs, compared with what."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.config import Config
from hpcopt.errors import DataError, JobError


class Settings(Config):
    """How thoroughly methods look; recorded beside their results."""

    steps: int = Field(32, ge=1, description="points on the line of integrated gradients")
    samples: int = Field(256, ge=2, description="perturbed inputs that LIME, CLE and KernelSHAP are fitted to")
    draws: int = Field(16, ge=1, description="noisy inputs of which smooth and GradientSHAP are means")
    noise: float = Field(0.1, ge=0, description="their standard deviation, as a part of the range of an input's values")
    patch: int = Field(4, ge=1, description="side in pixels of the squares that are left out of an image")
    evaluations: int = Field(64, ge=1, description="inputs that go through the network at once")


USUAL = Settings()


@dataclass(frozen=True)
class Question:
    """What a method is asked of a batch.

    Attributes:
        model: called with ``x`` and ``extra`` it gives one number a class, (n, classes).
        x: inputs, (n, ...), float32.
        target: class that each is asked about, (n,), int64.
        baseline: what stands for "nothing there", of the shape of x; its first dimension may be 1.
        parts: to which part, from 0 on, each value of an input belongs, (1, ...), int64.
        extra: further arguments of the model, each with n rows.
        layer: for methods that look inside.
        settings: how thoroughly.
    """

    model: nn.Module
    x: Tensor
    target: Tensor
    baseline: Tensor
    parts: Tensor
    extra: tuple[Tensor, ...] = ()
    layer: nn.Module | None = None
    settings: Settings = USUAL

    def __len__(self) -> int:
        return len(self.x)

    def row(self, number: int) -> "Question":
        """The question about one input."""
        only = slice(number, number + 1)
        return replace(
            self,
            x=self.x[only],
            target=self.target[only],
            baseline=self.baseline[only] if len(self.baseline) > 1 else self.baseline,
            extra=tuple(e[only] for e in self.extra),
        )

    def by_row(self, answer: Callable[["Question"], Tensor]) -> Tensor:
        """Ask about each input by itself; the answers as one batch."""
        return torch.cat([answer(self.row(number)) for number in range(len(self))])

    def forward(self, x: Tensor) -> Tensor:
        """The numbers of other inputs, (m, classes); m is a multiple of n, and ``extra`` repeats likewise."""
        times = len(x) // len(self)
        outputs: Tensor = self.model(x, *(e.repeat(times, *[1] * (e.dim() - 1)) for e in self.extra))
        return outputs

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that all methods of captum take."""
        return {"target": self.target, "additional_forward_args": self.extra or None}


def checked(question: Question) -> Question:
    """A question that can be answered, with the first input tried.

    Raises:
        DataError: the inputs do not go through the network.
        JobError: the network gives something else than numbers for classes, or lacks a class that is asked about.
    """
    shape = tuple(question.x.shape[1:])
    if not len(question):
        return question
    with torch.no_grad():
        try:
            first = question.row(0)
            outputs = first.forward(first.x)
        except (RuntimeError, ValueError, IndexError, TypeError) as cause:
            said = str(cause).splitlines()[0]
            raise DataError(f"the network does not take inputs of shape {shape}: {said}") from cause
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        gave = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise JobError(f"the network gives {gave}, not one number a class, (n, classes)")
    least, most = int(question.target.min()), int(question.target.max())
    if least < 0 or most >= outputs.shape[1]:
        wrong = least if least < 0 else most
        raise JobError(f"target {wrong}: the network has classes 0 to {outputs.shape[1] - 1}")
    return question
