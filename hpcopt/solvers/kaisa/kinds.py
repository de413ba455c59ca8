"""The method of a layer for which none is named: K-FAC, but Muon for the inner matrices of a model of tokens.

Of networks of convolutions and of autoencoders K-FAC is the soonest at AdamW's last loss, of those that begin with an
embedding Muon (docs/results/which_optimizer.md). Embeddings, norms and the output layer of these stay with the
optimizer. K-FAC's inverses are of low rank for linear maps, which are as good there at half of the step's time, and
whole for convolutions, where low rank saves nothing.
"""

from collections.abc import Callable
from typing import Literal

from torch import nn

KINDS = ("cholesky", "low_rank", "muon")  # that are chosen from

Kind = Literal["cholesky", "low_rank", "muon"]


def embedding_of(model: nn.Module) -> nn.Embedding | None:
    """A model's first embedding: one that has any is a model of tokens."""
    return next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)


def by_kind(model: nn.Module) -> Callable[[nn.Module], Kind | None]:
    """Says of a model's modules which method they go by; None: it is the output layer, for the optimizer, by which is
    meant the last linear map, if it has as many outputs as the first embedding has rows.
    """
    words = embedding_of(model)
    last = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)
    output = last if words is not None and last is not None and last.out_features == words.num_embeddings else None

    def kind(module: nn.Module) -> Kind | None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return "cholesky"
        if words is None:
            return "low_rank" if isinstance(module, nn.Linear) else "cholesky"
        return None if module is output else "muon"

    return kind
