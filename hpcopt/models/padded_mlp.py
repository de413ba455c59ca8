"""A perceptron on the pixels of pictures: the baseline that cannot change size."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hpcopt.models.config import PictureModelConfig
from hpcopt.models.mlp import MlpConfig


class PaddedMlp(nn.Module):
    """Fully connected layers on a canvas of the largest size, with a picture in its corner. A pixel is one channel for
    each symbol; where there is no pixel all of them are 0.
    """

    def __init__(self, largest: tuple[int, int], symbols: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.largest, self.symbols = largest, symbols
        self.layers = MlpConfig(hidden=hidden).build((*largest, symbols), 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Values, (n,), of pictures of one size, (n, rows, columns), which fits the canvas.

        Raises:
            ValueError: it does not.
        """
        rows, columns = pictures.shape[1:]
        down, right = self.largest[0] - rows, self.largest[1] - columns
        if down < 0 or right < 0:
            raise ValueError(f"a picture of {rows} by {columns} is larger than {self.largest[0]} by {self.largest[1]}")
        pixels = (pictures[..., None] == torch.arange(self.symbols, device=pictures.device)).float()
        values: Tensor = self.layers(F.pad(pixels, (0, 0, 0, right, 0, down)))
        return values[:, 0]


class PaddedMlpConfig(PictureModelConfig):
    """A perceptron on padded pixels: what is learned of a pixel is known of no other. ``hidden = []`` is linear."""

    name: Literal["padded_mlp"] = "padded_mlp"
    hidden: tuple[PositiveInt, ...] = Field((64,), description="widths of the hidden layers")

    def build(self, largest: tuple[int, int], symbols: int) -> PaddedMlp:
        """Make the model; it gives values, (n,)."""
        return PaddedMlp(largest, symbols, self.hidden)
