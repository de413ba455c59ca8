"""Embeddings of product quantization, learnt with the network (DPQ-VQ; Chen, Li and Sun 2019, arXiv:1908.09756).

In training a word has a vector of its own, (d,), in D slices. A digit's value is the number of that of its K vectors,
(d / D,), which is nearest to the slice; the embedding is these vectors, one behind the other. Its gradient goes to
them, and to the word's own vector as if that were the embedding: the straight-through estimator. The own vector is
drawn to the embedding (van den Oord et al. 2017, arXiv:1711.00937).

The digits' vectors begin as the centroids of the slices of the table that they replace, which is the product
quantization of Jegou et al. (2011): a table that was trained before is the start of a training in few bits.

A few frequent words are most of a text. They may keep their vectors, and all others share fewer bits.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.code_table import Composer
from hpcopt.models.rewrite import Penalised, Rewrite, of_distinct, replace_table

SAMPLE = 256  # words that a vector of a digit is found from, at most
ROUNDS = 10  # of k-means
ROWS = 4096  # words that are compared at a time


class ProductCodesConfig(Rewrite):
    """The product quantization of an embedding's table, learnt with the network, instead of the table."""

    name: Literal["product_codes"] = "product_codes"
    table: str = Field("word", description="which torch.nn.Embedding of the network, by its name there")
    ways: int = Field(128, ge=2, description="values of a digit: vectors of its table")
    digits: int = Field(32, ge=1, description="of a word's code: slices of an embedding, whose width they divide")
    ordered: bool = Field(
        False,
        description="words are numbered from the most frequent on, as level word of a text has them: the start counts "
        "them by Zipf's law, else alike",
    )
    exact: int = Field(0, ge=0, description="first words, which keep vectors of their own: frequent ones, if ordered")
    pull: float = Field(0.25, ge=0, description="of words' own vectors to their embeddings, by the squared distance")

    def apply(self, model: nn.Module) -> nn.Module:
        """Put codes in the place of the table.

        Raises:
            ValueError: there is no such table, it is of a kind that codes do not stand for, digits do not divide its
                width, or no word is left to have a code.
        """
        return replace_table(model, self.table, lambda old: ProductCodes(old, self))


class ProductCodes(Penalised):
    """The layer, in the place of a ``torch.nn.Embedding``. Sizes as in ``hpcopt.models.code_table``.

    Attributes:
        own: vectors of the words, (v, d), which are left out once training is over.
        composer: the digits' vectors, one behind the other.
        size: v, D, K and d, int64.
        exact: the number of words that keep their vectors, int64, if there are any.
        num_embeddings, embedding_dim: v and d.
        sparse: whether gradients of ``own`` are sparse, for a loop of one's own and ``torch.optim.SparseAdam``.
    """

    size: Tensor
    sparse = False

    def __init__(self, old: nn.Embedding, config: ProductCodesConfig) -> None:
        """Begin as the product quantization of a table.

        Raises:
            ValueError: digits do not divide its width, or no word is left to have a code.
        """
        super().__init__()
        words, width = old.weight.shape
        if width % config.digits:
            raise ValueError(f"digits = {config.digits} do not divide {width}, the width of an embedding")
        if config.exact >= words:
            raise ValueError(f"exact = {config.exact} of {words} words leave none to have a code")
        self.num_embeddings, self.embedding_dim = words, width
        self._pull, self._exact = config.pull, config.exact
        self.register_buffer("size", torch.tensor([words, config.digits, config.ways, width]))
        if config.exact:
            self.register_buffer("exact", torch.tensor(config.exact))
        self.own = nn.Parameter(old.weight.detach().clone())
        self.composer = Composer(config.digits, config.ways, width // config.digits, width, "concat")
        coded = words - config.exact
        some = torch.arange(coded) if config.ordered else torch.randperm(coded, device="cpu")
        with torch.no_grad():
            sample = self.own[config.exact + some[: SAMPLE * config.ways].to(self.own.device)]
            slices = sample.view(len(sample), config.digits, -1).unbind(1)
            ranks = config.exact + torch.arange(1, len(sample) + 1, device=self.own.device)
            counts = 1.0 / ranks ** float(config.ordered)
            self.composer.tables.copy_(torch.stack([centroids(x, counts, config.ways) for x in slices]))

    @property
    def weight(self) -> Tensor:
        """All embeddings, (v, d), as a tied head asks for them."""
        return self._embedded(torch.arange(self.num_embeddings, device=self.own.device))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens, of any shape, with d as the last dimension."""
        words = tokens.flatten()
        found = of_distinct(words, self._embedded) if self.training else self._embedded(words)
        if self.training and len(words):
            self.penalty = (
                self._pull * (F.embedding(words, self.own, sparse=self.sparse) - found.detach()).square().sum(1).mean()
            )
        return found.view(*tokens.shape, self.embedding_dim)

    def codes(self) -> Tensor:
        """Of all words but exact ones, (v - exact, D), int64: all that is left of their own vectors after training."""
        return nearest(self.own[self._exact :], self.composer.tables)

    def _embedded(self, words: Tensor) -> Tensor:
        """Embeddings, (n, d), of words, (n,)."""
        own = F.embedding(words, self.own, sparse=self.sparse)
        found: Tensor = self.composer(nearest(own, self.composer.tables))
        if self.training:
            found = found + (own - own.detach())
        return torch.where((words < self._exact)[:, None], own, found) if self._exact else found


@torch.no_grad()
def nearest(own: Tensor, tables: Tensor) -> Tensor:
    """Which vector of each digit is nearest to a slice, (n, D), int64. No product of matrices: its last bits would
    depend on the other words.

    Args:
        own: vectors in slices, (n, d).
        tables: (D, K, d / D).
    """
    found = []
    for part in torch.split(own, ROWS):
        slices = part.view(len(part), len(tables), tables.shape[2])
        near = (-0.5 * tables.square().sum(2)).repeat(len(part), 1, 1)
        for axis in range(tables.shape[2]):
            near.addcmul_(slices[:, :, None, axis], tables[:, :, axis])
        found.append(near.argmax(2))
    return torch.cat(found)


def centroids(points: Tensor, counts: Tensor, ways: int) -> Tensor:
    """Vectors, (K, w), each the mean of those points that it is nearest to (Lloyd 1982). They begin as the
    first points; one that no point is nearest to stays where it was.

    Args:
        points: (n, w), at least one.
        counts: how often each is there, (n,), positive.
        ways: K.
    """
    found = points[torch.arange(ways, device=points.device) % len(points)].clone()
    for _ in range(ROUNDS):
        owner = (points @ found.T - 0.5 * found.square().sum(1)).argmax(1)
        count = torch.zeros_like(found[:, :1]).index_add_(0, owner, counts[:, None])
        total = torch.zeros_like(found).index_add_(0, owner, counts[:, None] * points)
        found = torch.where(count > 0, total / count, found)
    return found
