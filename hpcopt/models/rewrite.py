"""Changes of a network after it is made, as sections of a job: ``[[workload.rewrites]]``."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.config import Choice


class Rewrite(Choice, ABC):
    """A change of a network."""

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Give the network changed; it may be the same object. What is drawn at random comes from torch's generator,
        which stands at the same place on all ranks.

        Raises:
            ValueError: the network lacks what is to be changed; the message says what it has.
        """

    def plan(self, model: nn.Module) -> str:
        """For a person, what it has made of the network; "" if its section says it all."""
        return ""


def replace_table(model: nn.Module, table: str, make: Callable[[nn.Embedding], nn.Module]) -> nn.Module:
    """Put a layer in the place of a table of embeddings; give the network, which is changed.

    Raises:
        ValueError: there is no such table, or it is of a kind that codes do not stand for.
    """
    there = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Embedding)}
    if table not in there:
        raise ValueError(f'no embedding "{table}" in the network, only {", ".join(there) or "none"}')
    old = there[table]
    if old.padding_idx is not None or old.max_norm is not None or old.sparse:
        raise ValueError(f'the embedding "{table}" has padding_idx, max_norm or sparse, which codes have not')
    parent, _, name = table.rpartition(".")
    setattr(model.get_submodule(parent), name, make(old).train(old.training))
    return model


def of_distinct(words: Tensor, embedded: Callable[[Tensor], Tensor]) -> Tensor:
    """``embedded(words)``, (n, d), once for each different word; not on a GPU, where finding them costs more."""
    if words.device.type != "cpu":
        return embedded(words)
    distinct, place = torch.unique(words, return_inverse=True)
    return F.embedding(place, embedded(distinct))


class Penalised(nn.Module):
    """A layer that adds to the loss what its last forward pass in training has cost.

    Attributes:
        penalty: a mean over the batch, (); None: nothing.
    """

    penalty: Tensor | None = None


class Stepped(nn.Module):
    """A layer that changes with the step of training, whatever this rank's share of a step is.

    Attributes:
        step: that is under way, from 0 on; whoever trains sets it before the step.
    """

    step: int = 0


def stepped(model: nn.Module) -> list[Stepped]:
    """The layers of a network that are to be told the step."""
    return [layer for layer in model.modules() if isinstance(layer, Stepped)]


def with_penalties(loss: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """A loss of a model and a batch, and the penalties of the model's layers."""

    def both(model: nn.Module, batch: Any) -> Tensor:
        value = loss(model, batch)
        for layer in model.modules():
            if isinstance(layer, Penalised) and layer.penalty is not None:
                value, layer.penalty = value + layer.penalty, None
        return value

    return both
