"""The last layer of a language model: from hidden units to how likely each word is.

Sizes: m places in n windows of s tokens, h hidden units, v words.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHRINK = 4  # times fewer units for each cluster of rarer words


class WordHead(nn.Module, ABC):
    """The layer. Losses and logarithms are natural, float32."""

    def forward(self, hidden: Tensor, targets: Tensor | None, embedding: nn.Module) -> Tensor:
        """Say how likely words are.

        Args:
            hidden: (n, s, h).
            targets: words, (n, s), int64, or None.
            embedding: of the same words; a tied head takes its ``weight``, (v, h).

        Returns:
            With targets, minus the logarithms of their probabilities, (n, s). Without, logarithms of the probabilities
            of all words, (n, s, v).
        """
        places = hidden.flatten(0, 1)
        if targets is None:
            return self.all_logarithms(places, embedding).view(*hidden.shape[:2], -1)
        return self.loss(places, targets.flatten(), embedding).view_as(targets)

    @abstractmethod
    def loss(self, hidden: Tensor, targets: Tensor, embedding: nn.Module) -> Tensor:
        """Minus the logarithms of the targets' probabilities, (m,)."""

    @abstractmethod
    def all_logarithms(self, hidden: Tensor, embedding: nn.Module) -> Tensor:
        """Logarithms of all words' probabilities, (m, v)."""


class SoftmaxHead(WordHead):
    """A score for every word, by a table of its own or by that of the words' embeddings (Press and Wolf 2016,
    arXiv:1608.05859).
    """

    def __init__(self, units: int, words: int, *, tied: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(words))
        self.weight: nn.Parameter | None = None
        if not tied:
            self.weight = nn.Parameter(torch.empty(words, units))
            nn.init.normal_(self.weight, std=units**-0.5)

    def loss(self, hidden: Tensor, targets: Tensor, embedding: nn.Module) -> Tensor:
        return F.cross_entropy(self._scores(hidden, embedding), targets, reduction="none")

    def all_logarithms(self, hidden: Tensor, embedding: nn.Module) -> Tensor:
        return self._scores(hidden, embedding).log_softmax(-1)

    def _scores(self, hidden: Tensor, embedding: nn.Module) -> Tensor:
        table = embedding.weight if self.weight is None else self.weight
        assert isinstance(table, Tensor)
        return F.linear(hidden, table, self.bias).float()


class AdaptiveHead(WordHead):
    """Adaptive softmax (Grave et al. 2016, arXiv:1609.04309): frequent words in a short list, rare ones in clusters
    whose units are 4 times fewer for each. Words are numbered from the most frequent on.
    """

    def __init__(self, units: int, words: int, cutoffs: Sequence[int]) -> None:
        """Args:
        units: hidden units, h.
        words: v.
        cutoffs: the first word of each cluster, ascending.

        Raises:
            ValueError: they do not ascend between 1 and v - 1, or are too many for h.
        """
        super().__init__()
        if not cutoffs or sorted(set(cutoffs)) != list(cutoffs) or not 0 < cutoffs[0] <= cutoffs[-1] < words:
            raise ValueError(f"cutoffs = {list(cutoffs)} should ascend, each between 1 and {words - 1}")
        if units < SHRINK ** len(cutoffs):
            raise ValueError(
                f"the last of {len(cutoffs)} clusters has less than one of {units} units: take more of them"
            )
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(units, words, list(cutoffs), div_value=SHRINK)

    def loss(self, hidden: Tensor, targets: Tensor, embedding: nn.Module) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # it fills in an array of one dtype
            found: Tensor = self.softmax(hidden.float(), targets).output
        return -found

    def all_logarithms(self, hidden: Tensor, embedding: nn.Module) -> Tensor:
        found: Tensor = self.softmax.log_prob(hidden.float())
        return found
