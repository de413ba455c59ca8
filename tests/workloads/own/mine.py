"""What a person might bring along: networks, data sets, losses and scores, good and bad. The jobs of these tests name
it as ``mine:...``.
"""

import dataclasses
import random
from threading import current_thread

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

FEATURES, CLASSES = 6, 3


class Net(nn.Module):
    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))

    def forward(self, x):
        return self.layers(x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES + 1, CLASSES)

    def forward(self, x, size):
        return self.layer(torch.cat([x, size[:, None]], 1))


class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no way forward")


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g.clone()


class Blunt(Net):
    """Its gradient has no derivative."""

    def forward(self, x):
        return _Once.apply(self.layers(x))


class ComplexNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(CLASSES, dtype=torch.complex64))

    def forward(self, x):
        return (self.layers(x) * self.phase).real


def no_network():
    return 7


class Table(Dataset):
    """Samples that are known by their number."""

    def __init__(self, samples: int = 40, kind: str = "tuple", noise: float = 0.0, bad: int = -1) -> None:
        draw = np.random.default_rng(5)
        self.x = draw.standard_normal((samples, FEATURES)).astype(np.float32)
        self.y = (self.x[:, :CLASSES] + 0.1 * draw.standard_normal((samples, CLASSES))).argmax(1)
        self.kind, self.noise, self.bad = kind, noise, bad

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index):
        x, y = self.x[index], int(self.y[index])
        if index == self.bad:
            match self.kind:
                case "raises":
                    raise OSError("the disk is on fire")
                case "exits":
                    raise SystemExit(3)
                case "ragged":
                    x = x[:-1]
                case "text":
                    y = "three"
        if self.noise:
            x = x + np.float32(self.noise * (torch.randn(()) + np.random.randn() + random.gauss()))
        if self.kind == "doubles":
            return x.astype(np.float64), y
        if self.kind == "two inputs":
            return x, float(index), y
        return {"x": x, "size": float(index), "label": y} if self.kind == "dictionary" else (x, y)


def exits():
    raise SystemExit(4)


def uneven(odd: int):
    """Of another size on the second rank, where ranks are threads."""
    return Table(odd if current_thread().name == "rank1" else 40)


class Numbers(IterableDataset):
    """A stream that ends, and can tell where it stands if asked to."""

    def __init__(self, samples: int = 50, noise: float = 0.0) -> None:
        self.table, self.made = Table(samples, noise=noise), 0

    def __iter__(self):
        for index in range(len(self.table)):
            self.made += 1
            yield self.table[index]


class Resumable(IterableDataset):
    """A stream without an end that goes on where it was."""

    made = 0

    def __init__(self, samples: int = 50) -> None:
        self.table, self.place = Table(samples), 0

    def __iter__(self):
        while True:
            self.place += 1
            Resumable.made += 1
            yield self.table[(self.place - 1) * 7 % len(self.table)]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Skipping(Resumable):
    state_dict = property()  # it has none
    skipped = 0

    def skip(self, samples):
        self.place += samples
        Skipping.skipped += samples


class Once(IterableDataset):
    def __iter__(self):
        return self

    def __next__(self):
        return 1.0, 1


ONCE = Once()


def padded(samples):
    """A batch of sequences of any length."""
    return nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True), torch.tensor([y for _, y in samples])


class Sequences(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.ones(1 + index % 4), index % 2


class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, x):
        return self.layer(x.sum(1, keepdim=True))


def squares(outputs, targets):
    return ((outputs - nn.functional.one_hot(targets, CLASSES)) ** 2).mean()


squares.better = "lower"


def silent(outputs, targets):
    return squares(outputs, targets)


TABLE = {1: 2}


class Untold:
    """Whatever it lacks cannot be asked for."""

    better = "higher"
    __getattr__ = None

    def update(self, outputs, targets):
        return {}

    def finish(self, sums):
        return 0.0


class WorstSample:
    """A score that is no mean over samples: the share of the class that is hit least."""

    better = "higher"
    name = "worst_class"

    def update(self, outputs, targets):
        hit = outputs.argmax(1) == targets
        return {
            "hit": torch.bincount(targets[hit], minlength=CLASSES),
            "all": torch.bincount(targets, minlength=CLASSES),
        }

    def finish(self, sums):
        return float((sums["hit"] / sums["all"]).min())


class NotANumber(WorstSample):
    name = "nothing"

    def finish(self, sums):
        return float("nan")


@dataclasses.dataclass
class Equal(nn.Module):
    """Dataclasses are compared by value, and then cannot be hashed."""

    width: int = 3

    def __post_init__(self):
        super().__init__()


class Counted:
    """A score whose sums are numbers."""

    better = "higher"

    def update(self, outputs, targets):
        return {"rows": len(targets)}

    def finish(self, sums):
        return float(sums["rows"])
