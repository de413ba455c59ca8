"""Embeddings whose codes are learnt (KD codes; Chen, Min and Sun 2018, arXiv:1806.09464).

A word has logits, (D, K), for the values of its D digits. Normalised, at temperature T, they are probabilities
``p = softmax(logits / T)``; forward uses the likeliest value of each digit, backward the gradient at p: the
straight-through estimator. Gumbel noise on the logits draws a value instead (Jang et al. 2016, arXiv:1611.01144).

The paper normalises the logits by the mean and the deviation over a batch. Here both are taken over all words, so that
nothing depends on the batch or on the number of ranks. They are constants to the gradient: it would only move logits
in directions that the normalisation takes away.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.code_table import Composer, Composition
from hpcopt.models.rewrite import Penalised, Rewrite, Stepped, of_distinct, replace_table

TINY = 1e-5  # added to a variance


class CodedEmbeddingConfig(Rewrite):
    """Codes and small tables instead of an embedding's table."""

    name: Literal["coded_embedding"] = "coded_embedding"
    table: str = Field("word", description="which torch.nn.Embedding of the network, by its name there")
    ways: int = Field(32, ge=2, description="values of a digit, K in the paper")
    digits: int = Field(32, ge=1, description="of a word's code, D in the paper")
    inner: int | None = Field(None, ge=1, description="width of the tables' vectors; off: that of the embedding")
    compose: Composition = Field("mean", description="what makes an embedding of a word's vectors")
    relaxation: Literal["straight_through", "gumbel"] = Field(
        "straight_through", description="forward takes the likeliest value, or one that is drawn"
    )
    temperature: float = Field(1.0, gt=0, description="of the softmax, at the start")
    cooling: float = Field(1.0, gt=0, le=1, description="times the temperature, after each step")
    coldest: float = Field(0.1, gt=0, description="below which the temperature does not fall")
    spread: float = Field(
        1.0, gt=0, description="deviation of logits at the start: the smaller, the faster codes change"
    )
    guide: Literal["none", "table", "online"] = Field(
        "none",
        description="embeddings are drawn to the table that they replace as it was (see start_from of a workload), or "
        "to one that is trained beside them and seen instead of them by half of the tokens",
    )
    guide_weight: float = Field(1000.0, gt=0, description="of the mean squared distance to the guide")

    def apply(self, model: nn.Module) -> nn.Module:
        """Put codes in the place of the table.

        Raises:
            ValueError: there is no such table, or it is of a kind that codes do not stand for.
        """
        return replace_table(model, self.table, lambda old: CodedEmbedding(old, self))


class CodedEmbedding(Penalised, Stepped):
    """The layer, in the place of a ``torch.nn.Embedding``. Sizes as in ``hpcopt.models.code_table``.

    Attributes:
        logits: of the values of each word's digits, (v, D, K).
        composer: tables and what composes them.
        size: v, D, K and d, int64.
        num_embeddings, embedding_dim: v and d.
    """

    guide: Tensor | None
    size: Tensor

    def __init__(self, old: nn.Embedding, config: CodedEmbeddingConfig) -> None:
        """Codes drawn at random, with embeddings of the deviation that the old ones have."""
        super().__init__()
        self.num_embeddings, self.embedding_dim, self._config = old.num_embeddings, old.embedding_dim, config
        self.register_buffer("size", torch.tensor([old.num_embeddings, config.digits, config.ways, old.embedding_dim]))
        inner = config.inner or _inner(config, old.embedding_dim)
        self.logits = nn.Parameter(config.spread * torch.randn(old.num_embeddings, config.digits, config.ways))
        self.composer = Composer(config.digits, config.ways, inner, old.embedding_dim, config.compose)
        if old.weight.numel() > 1:
            self.composer.scale_to(float(old.weight.detach().std()))
        if config.guide == "online":
            self.guide = nn.Parameter(old.weight.detach().clone())
        else:
            table = old.weight.detach().clone() if config.guide == "table" else None
            self.register_buffer("guide", table, persistent=False)

    @property
    def weight(self) -> Tensor:
        """All embeddings, (v, d), as a tied head asks for them."""
        return self._embedded(torch.arange(self.num_embeddings, device=self.logits.device))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens, of any shape, with d as the last dimension."""
        words = tokens.flatten()
        once = self.training and self._config.relaxation != "gumbel"  # which draws anew for each token
        found = of_distinct(words, self._embedded) if once else self._embedded(words)
        if self.training:
            found = self._guided(found, words)
        return found.view(*tokens.shape, self.embedding_dim)

    def codes(self) -> Tensor:
        """The likeliest value of each digit of all words, (v, D), int64: all that is left of the logits after
        training.
        """
        return codes_of(self.logits)

    def _embedded(self, words: Tensor) -> Tensor:
        """Embeddings of words, (n,)."""
        logits = _normalised(self.logits, words)
        if not self.training:
            found: Tensor = self.composer(logits.argmax(-1))
            return found
        if self._config.relaxation == "gumbel":
            logits = logits - torch.empty_like(logits).exponential_().log()
        return self.composer.of_choices(straight_through(logits, self._temperature()))

    def _temperature(self) -> float:
        c = self._config
        return c.temperature if c.cooling == 1 else max(c.temperature * c.cooling**self.step, c.coldest)

    def _guided(self, found: Tensor, words: Tensor) -> Tensor:
        """Set the penalty; with a guide that learns, let half of the tokens see that."""
        if self.guide is None or not len(words):
            return found
        guide = F.embedding(words, self.guide)
        self.penalty = self._config.guide_weight * F.mse_loss(found, guide.detach())
        if self._config.guide != "online":
            return found
        coin = torch.rand(len(words), 1, device=found.device) < 0.5
        return torch.where(coin, guide, found)


def _inner(config: CodedEmbeddingConfig, width: int) -> int:
    if config.compose != "concat":
        return width
    if width % config.digits:
        raise ValueError(f"digits = {config.digits} do not divide {width}, the width of an embedding: give inner")
    return width // config.digits


def straight_through(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """A one at the largest of the last dimension, whose gradient is that of the softmax at this temperature."""
    p = (logits / temperature).softmax(-1)
    hard = torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0)
    return hard + (p - p.detach())


@torch.no_grad()
def codes_of(logits: Tensor) -> Tensor:
    """The codes, (v, D), int64, of logits, (v, D, K)."""
    return _normalised(logits, torch.arange(len(logits), device=logits.device)).argmax(-1)


def _normalised(logits: Tensor, words: Tensor) -> Tensor:
    """Rows of logits, without the mean of all and over their deviation, for each digit and value."""
    with torch.no_grad():
        variance, mean = torch.var_mean(logits, 0, correction=0)
        gain = (variance + TINY).rsqrt()
    return (F.embedding(words, logits.flatten(1)).view(-1, *logits.shape[1:]) - mean) * gain
