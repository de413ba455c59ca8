"""What a language model's section has, whatever is between its embedding and its head."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field
from torch import nn

from hpcopt.config import Choice
from hpcopt.models.causal.head import AdaptiveHead, SoftmaxHead, WordHead


class CausalModelConfig(Choice, ABC):
    """A network on tokens that predicts each from those before it."""

    head: Literal["tied", "untied", "adaptive"] = Field(
        "untied", description="scores of words by the embedding's table, by one of its own, or adaptive softmax"
    )
    cutoffs: tuple[int, ...] = Field(
        (2000, 10000), description="of adaptive softmax: numbers of the first words of each cluster of rarer ones"
    )

    @abstractmethod
    def build(self, words: int, length: int) -> nn.Module:
        """Make the network, which is called as ``hpcopt.models.causal.lstm.Lstm`` is.

        Args:
            words: different tokens, from the most frequent on if the head is adaptive.
            length: most tokens of a window.

        Raises:
            ValueError: the settings do not suit each other; the message says why.
        """

    def head_of(self, units: int, words: int, width: int) -> WordHead:
        """The head on so many hidden units, over embeddings of a width.

        Raises:
            ValueError: it does not suit them.
        """
        if self.head == "adaptive":
            return AdaptiveHead(units, words, self.cutoffs)
        if self.head == "tied" and width != units:
            raise ValueError(f"a tied head needs units = width, not {units} and {width}")
        return SoftmaxHead(units, words, tied=self.head == "tied")
