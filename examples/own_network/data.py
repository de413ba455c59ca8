"""A data set that knows nothing of hpcopt: scikit-learn's handwritten digits, each moved by a pixel at random."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset


class Digits(Dataset[tuple[Tensor, int]]):
    """1,437 digits to train on, or the 360 others to test on: an image, (1, 8, 8), and its class."""

    def __init__(self, train: bool, moved: bool = False) -> None:
        digits = load_digits()
        mine = (np.arange(len(digits.target)) % 5 != 0) == train
        self.images = torch.from_numpy(digits.images[mine] / 16).float()[:, None]
        self.classes = digits.target[mine]
        self.moved = moved

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.moved:
            down, right = torch.randint(-1, 2, (2,)).tolist()
            image = image.roll((down, right), (1, 2))
        return image, int(self.classes[index])
