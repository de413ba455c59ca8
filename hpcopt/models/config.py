"""Networks as sections of a job."""

from abc import ABC, abstractmethod

from torch import nn

from hpcopt.config import Choice


class TokenModelConfig(Choice, ABC):
    """A network on tokens."""

    @abstractmethod
    def build(self, words: int) -> nn.Module:
        """Make the network for a vocabulary of so many words."""


class GraphModelConfig(Choice, ABC):
    """A network on a graph."""

    @abstractmethod
    def build(self, features: int, classes: int) -> nn.Module:
        """Make the network: called with a ``hpcopt.models.graph.graph.Graph`` and what its rows have, (n, features), it
        gives (n, classes).
        """


class FrameModelConfig(Choice, ABC):
    """A network from sequences of frames to outputs of each frame."""

    @abstractmethod
    def build(self, inputs: int, outputs: int) -> nn.Module:
        """Make the network from frames, (n, T, inputs), to outputs in [0, 1], (n, T, outputs); those of a frame depend
        on it and on frames before.

        Raises:
            ValueError: the network does not suit such frames; the message says why.
        """


class ImageModelConfig(Choice, ABC):
    """A network from images to outputs."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Make the network.

        Args:
            shape: of one image: channels, height, width.
            classes: values that it gives for each image, or for each of its pixels.

        Raises:
            ValueError: the network does not suit such images; the message says why.
        """


class VectorModelConfig(Choice, ABC):
    """A network from vectors to numbers."""

    @abstractmethod
    def build(self, inputs: int) -> nn.Module:
        """Make the network: of (n, inputs) it makes (n,).

        Raises:
            ValueError: the network does not suit so many inputs; the message says why.
        """


class PictureModelConfig(Choice, ABC):
    """A network from pictures, grids of symbols of any size, to a value each."""

    @abstractmethod
    def build(self, largest: tuple[int, int], symbols: int) -> nn.Module:
        """Make the network: called with pictures of one size, (n, rows, columns), uint8, it gives (n,).

        Args:
            largest: rows and columns of the largest pictures.
            symbols: that a pixel may be, from 0 on.

        Raises:
            ValueError: the network does not suit such pictures; the message says why.
        """
