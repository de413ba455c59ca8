"""The method of a layer for which none is named.

The kind of the model says it: Muon for the inner matrices of a model of tokens, which begins with an embedding;
Newton-Muon for a network with convolutions; K-FAC for what has neither, as an autoencoder of linear maps, or Muon, if
matrices are multiplied in bfloat16. Of this package's methods each is the soonest there at AdamW's last loss
(docs/results/which_optimizer.md). Embeddings, norms and the output layer of a model of tokens stay with the optimizer.
K-FAC's inverses are of low rank for linear maps, which are as good there at half of the step's time.
"""

from collections.abc import Callable
from typing import Literal

from torch import nn

from hpcopt.solvers.kaisa.layers.known import CONVOLUTIONS

KINDS = ("cholesky", "low_rank", "muon", "newton_muon")  # that are chosen from

Kind = Literal["cholesky", "low_rank", "muon", "newton_muon"]


def embedding_of(model: nn.Module) -> nn.Embedding | None:
    """A model's first embedding: one that has any is a model of tokens."""
    return next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)


def of_matrices(model: nn.Module, narrow: bool) -> Kind:
    """The method of most of a model's matrices; ``narrow``: they are multiplied in bfloat16."""
    if embedding_of(model) is not None:
        return "muon"
    if any(isinstance(m, CONVOLUTIONS) for m in model.modules()):
        return "newton_muon"
    return "muon" if narrow else "low_rank"


def by_kind(model: nn.Module, narrow: bool) -> Callable[[nn.Module], Kind | None]:
    """Says of a model's modules which method they go by; None: it is the output layer, for the optimizer, by which is
    meant the last linear map, if it has as many outputs as the first embedding has rows.
    """
    words, most = embedding_of(model), of_matrices(model, narrow)
    last = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)
    output = last if words is not None and last is not None and last.out_features == words.num_embeddings else None

    def kind(module: nn.Module) -> Kind | None:
        if isinstance(module, CONVOLUTIONS):
            return "newton_muon"
        if most == "low_rank" and not isinstance(module, nn.Linear):
            return "cholesky"
        return None if module is output else most

    return kind
