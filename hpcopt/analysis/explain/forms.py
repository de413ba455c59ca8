"""How a batch of a workload becomes inputs that can be explained: its one input, or of BERT the word that is hidden."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpcopt.analysis.explain.subject import (
    UNKNOWN,
    Embedded,
    Inputs,
    Numbers,
    Subject,
    embedded,
    embedding_of,
    kind_of,
)
from hpcopt.errors import DataError
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.workload import Workload
from hpcopt.workloads.bert_pretraining import NO_TOKEN, BertPretraining


class Form(Protocol):
    """From a batch to inputs of a subject."""

    subject: Subject

    def __call__(self, batch: TensorBatch) -> Inputs:
        """The batch's inputs."""


class OneInput:
    """Of a network that is called with one tensor, such as ``example``: images, columns, or tokens."""

    def __init__(
        self, network: nn.Module, of: Callable[[TensorBatch], Tensor], example: Tensor, name: str, classes: list[str]
    ) -> None:
        """Get ready.

        Args:
            network: in evaluation mode.
            of: the tensor of a batch that the network gets.
            example: one such tensor, (1, ...).
            name: of where all comes from.
            classes: their names, if they have some.

        Raises:
            DataError: inputs of such a shape are none that can be explained.
        """
        self._of, self.example, kind = of, example, kind_of(example)
        model: nn.Module = network
        self._embedding = embedding_of(network, example) if kind == "tokens" else None
        if self._embedding is not None:
            model = Embedded(network, self._embedding)
        self.subject = Subject(Numbers(model).eval(), network, kind, name, classes, embedding=self._embedding)

    def __call__(self, batch: TensorBatch) -> Inputs:
        raw, rows, labels = self._of(batch), batch.indices.numpy(), labels_of(batch)
        if self._embedding is None:
            return Inputs(rows, raw.float(), (), raw.float(), labels)
        return Inputs(rows, embedded(self._embedding, raw), (raw,), raw, labels)


class HiddenWord:
    """Of BERT: its classes are the words, and the question is about the first one that is hidden."""

    def __init__(self, network: nn.Module, words: list[str], name: str) -> None:
        embedding: Any = network.word
        assert isinstance(embedding, nn.Embedding)
        self._embedding = embedding
        model = Numbers(Embedded(_HiddenWord(network), embedding)).eval()
        self.subject = Subject(model, network, "tokens", name, words, words, embedding, words.index("[MASK]"))

    def __call__(self, batch: TensorBatch) -> Inputs:
        t = batch.tensors
        first = (t["masked_ids"] != NO_TOKEN).int().argmax(1)[:, None]
        place, labels = t["masked_positions"].gather(1, first)[:, 0], t["masked_ids"].gather(1, first)[:, 0]
        tokens = t["input_ids"].long()
        extra = (tokens, t["segment_ids"], t["input_mask"], place)
        return Inputs(batch.indices.numpy(), embedded(self._embedding, tokens), extra, tokens, labels)


class _HiddenWord(nn.Module):
    """Logits of one word of each sequence, (n, words)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, segments: Tensor, there: Tensor, place: Tensor) -> Tensor:
        """At ``place``, (n,)."""
        n, length = tokens.shape
        words: Tensor = self.network(tokens, segments, there, place + torch.arange(n) * length)[0]
        return words


def form_of(workload: Workload, network: nn.Module, name: str, words: list[str]) -> Form:
    """The form of a workload's batches.

    Raises:
        DataError: its network has several inputs, or none that can be explained.
    """
    if isinstance(workload, BertPretraining):
        return HiddenWord(network, words, name)
    if not isinstance(workload.loss, OutputLoss):
        raise DataError(
            f"{name}: explanations are of networks of one input (images, tokens or columns) and of BERT; this one is "
            "called otherwise"
        )
    classes = getattr(workload, "attributes", {}).get("classes", [])
    return OneInput(network, workload.loss.inputs, workload.loss.example, name, [str(c) for c in classes])


def labels_of(batch: TensorBatch) -> Tensor:
    """The classes of a batch, (n,), where it has any: of a sequence of them the last; else UNKNOWN."""
    for name in ("labels", "targets"):
        found = batch.tensors.get(name)
        if found is not None and not found.is_floating_point() and found.dim() in (1, 2):
            return (found if found.dim() == 1 else found[:, -1]).long()
    return torch.full((len(batch),), UNKNOWN)
