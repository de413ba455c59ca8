"""What is explained: a network that gives one number a class, and the inputs that it is asked about.

Methods change inputs by degrees, so those of a subject are numbers. Where a network takes tokens, they are the tokens'
embeddings, which are put in the place of what the network looks up itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.errors import DataError

Kind = Literal["image", "tokens", "table"]
UNKNOWN = -1


@dataclass(frozen=True)
class Inputs:
    """Some inputs of a subject.

    Attributes:
        rows: their numbers, (n,), int64.
        x: what the network is asked with, (n, ...), float32; of tokens (n, s, width).
        extra: further arguments, each with n rows.
        shown: what a person sees: images between 0 and 1, numbers of tokens (n, s), columns.
        labels: their classes, (n,), int64; UNKNOWN where nobody knows.
    """

    rows: np.ndarray
    x: Tensor
    extra: tuple[Tensor, ...]
    shown: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Subject:
    """A network, as methods want it.

    Attributes:
        model: from ``x`` and ``extra`` of ``Inputs`` to (n, classes), in evaluation mode.
        network: the network itself, for the names of its layers.
        kind: of its inputs.
        name: of where it comes from.
        classes: their names, where they have some.
        words: of the vocabulary, likewise.
        embedding: of tokens.
        baseline: number that stands for "not there", of tokens a token's.
    """

    model: nn.Module
    network: nn.Module
    kind: Kind
    name: str
    classes: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    embedding: nn.Embedding | None = None
    baseline: float = 0.0

    def nothing(self, baseline: float | None, x: Tensor) -> Tensor:
        """An input where nothing is, (1, ...), by a number or this subject's own.

        Raises:
            DataError: there is no such token.
        """
        number = self.baseline if baseline is None else baseline
        if self.embedding is None:
            return torch.full((1, *x.shape[1:]), number)
        if int(number) != number or not 0 <= number < self.embedding.num_embeddings:
            raise DataError(f"baseline {number}: there are tokens 0 to {self.embedding.num_embeddings - 1}")
        return embedded(self.embedding, torch.full((1, x.shape[1]), int(number)))

    def parts(self, x: Tensor, patch: int) -> Tensor:
        """Which values are left out together, (1, ...), int64: squares of an image, tokens, columns."""
        if self.kind == "image":
            down, across = (torch.arange(side) // patch for side in x.shape[2:])
            squares = down[:, None] * (int(across[-1]) + 1) + across
            return squares.expand(1, *x.shape[1:])
        places = torch.arange(x.shape[1])
        return places.reshape(1, -1, *[1] * (x.dim() - 2)).expand(1, *x.shape[1:])

    def told(self, attribution: Tensor) -> Tensor:
        """What a method says, as it is kept: of tokens the sum over the embedding, (n, s)."""
        return attribution.flatten(2).sum(2) if self.kind == "tokens" else attribution


class Numbers(nn.Module):
    """A network whose outputs are one number a class: the last place of a sequence, the mean over the places of a
    picture, the first of several outputs.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments: Tensor) -> Tensor:
        """(n, classes)."""
        found: Any = self.network(*arguments)
        while isinstance(found, tuple | list):
            found = found[0]
        numbers: Tensor = found
        match numbers.dim():
            case 1:
                return numbers[:, None]
            case 3:
                return numbers[:, -1]
            case 2:
                return numbers
        return numbers.flatten(2).mean(2)


class Embedded(nn.Module):
    """A network of tokens as one of their embeddings: called with embeddings (n, s, width), tokens (n, s) and the
    network's further arguments.
    """

    def __init__(self, network: nn.Module, embedding: nn.Embedding) -> None:
        super().__init__()
        self.network, self.embedding = network, embedding

    def forward(self, x: Tensor, tokens: Tensor, *others: Tensor) -> Tensor:
        """What the network gives."""
        handle = self.embedding.register_forward_hook(lambda *_: x)
        try:
            found: Tensor = self.network(tokens, *others)
        finally:
            handle.remove()
        return found


def embedding_of(network: nn.Module, tokens: Tensor, others: Sequence[Tensor] = ()) -> nn.Embedding:
    """The embedding that a network looks its tokens up in.

    Raises:
        DataError: there is none.
    """
    found: list[nn.Embedding] = []

    def look(module: nn.Module, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, nn.Embedding)
        if arguments[0].shape == tokens.shape and torch.equal(arguments[0], tokens):
            found.append(module)

    handles = [m.register_forward_hook(look) for m in network.modules() if isinstance(m, nn.Embedding)]
    try:
        with torch.no_grad():
            network(tokens, *others)
    except (RuntimeError, IndexError, ValueError, TypeError) as cause:
        raise DataError(
            f"the network does not take tokens of shape {tuple(tokens.shape)}: {str(cause).splitlines()[0]}"
        ) from cause
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise DataError(
            "the network takes whole numbers and looks them up in no torch.nn.Embedding: no gradient gets there"
        )
    return found[0]


def embedded(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    """Embeddings of tokens, (n, s, width)."""
    with torch.no_grad():
        return nn.functional.embedding(tokens, embedding.weight)


def kind_of(x: Tensor) -> Kind:
    """What inputs (n, ...) are, by their type and dimensions.

    Raises:
        DataError: they are none that methods know.
    """
    if not x.is_floating_point():
        if x.dim() == 2:
            return "tokens"
    elif x.dim() == 4:
        return "image"
    elif x.dim() in (2, 3):
        return "table"
    raise DataError(
        f"inputs of shape {tuple(x.shape[1:])} and {x.dtype} are neither images (channels, height, width) nor tokens, "
        "(s), nor columns"
    )
