"""Long short-term memory as a language model (Hochreiter and Schmidhuber 1997; Zaremba et al. 2014,
arXiv:1409.2329).
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from hpcopt.models.causal.config import CausalModelConfig
from hpcopt.models.causal.head import WordHead


class LstmConfig(CausalModelConfig):
    """LSTM; it begins each window from zero."""

    name: Literal["lstm"] = "lstm"
    width: int = Field(128, ge=1, description="of a word's embedding")
    units: int = Field(128, ge=1, description="of a layer; a tied head needs as many as width")
    layers: int = Field(1, ge=1, description="of LSTM")
    dropout: float = Field(0.0, ge=0, lt=1, description="after the embedding, between layers and before the head")

    def build(self, words: int, length: int) -> "Lstm":
        """Make the network.

        Raises:
            ValueError: head and widths do not suit each other.
        """
        return Lstm(self, words)


class Lstm(nn.Module):
    """The network. Sizes: n windows, s tokens each, v words."""

    def __init__(self, config: LstmConfig, words: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, config.width)
        nn.init.normal_(self.word.weight, std=config.width**-0.5)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.width, config.units, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.head: WordHead = config.head_of(config.units, words, config.width)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Predict the token after each of ``tokens``, (n, s).

        Returns:
            With targets, (n, s), int64: minus the logarithm of the probability of each, (n, s), float32. Without:
            logarithms of the probabilities of all words, (n, s, v), float32.
        """
        hidden = self.dropout(self.lstm(self.dropout(self.word(tokens)))[0])
        logarithms: Tensor = self.head(hidden, targets, self.word)
        return logarithms
