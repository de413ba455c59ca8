"""A network with a table of embeddings, for the tests' problem of a few features."""

import torch
from torch import Tensor, nn

from hpcopt.models.rewrite import Rewrite
from hpcopt.testing.problem import CLASSES


class Signs(nn.Module):
    """The problem's features as words of their signs."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(8, 6)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        words = ((x > 0).long().unflatten(1, (2, 3)) * torch.tensor([1, 2, 4])).sum(2)
        out: Tensor = self.head(self.word(words).flatten(1))
        return out


def rewritten(rewrite: Rewrite) -> nn.Module:
    """The network after a change, with the same weights each time."""
    torch.manual_seed(1)
    return rewrite.apply(Signs())
