"""A decoder-only transformer as a language model (Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019).

Pre-norm layers with a norm at the end, learnt places, and attention to the tokens before and to itself only.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.causal.config import CausalModelConfig
from hpcopt.models.causal.head import WordHead


class TransformerConfig(CausalModelConfig):
    """Decoder-only transformer."""

    name: Literal["transformer"] = "transformer"
    width: int = Field(128, ge=1, description="of a token")
    layers: int = Field(2, ge=1, description="of attention and perceptron")
    heads: int = Field(4, ge=1, description="of attention; they divide the width")
    dropout: float = Field(0.0, ge=0, lt=1, description="after the embedding and within layers")

    def build(self, words: int, length: int) -> "Transformer":
        """Make the network.

        Raises:
            ValueError: heads do not divide the width, or the head does not suit it.
        """
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} do not divide width = {self.width}")
        return Transformer(self, words, length)


class Transformer(nn.Module):
    """The network. Sizes: n windows, s tokens each, v words."""

    def __init__(self, config: TransformerConfig, words: int, length: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, config.width)
        self.place = nn.Embedding(length, config.width)
        for table in (self.word, self.place):
            nn.init.normal_(table.weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                4 * config.width,
                config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head: WordHead = config.head_of(config.width, words, config.width)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Predict the token after each of ``tokens``, (n, s); s is at most the length that the network was made for.

        Returns:
            With targets, (n, s), int64: minus the logarithm of the probability of each, (n, s), float32. Without:
            logarithms of the probabilities of all words, (n, s, v), float32.
        """
        steps = tokens.shape[1]
        x: Tensor = self.dropout(self.word(tokens) + self.place.weight[:steps])
        later = torch.ones(steps, steps, dtype=torch.bool, device=tokens.device).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=later, is_causal=True)
        logarithms: Tensor = self.head(self.norm(x), targets, self.word)
        return logarithms
