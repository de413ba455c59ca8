"""A language model of characters, on any text file: a GRU that guesses the next one.

python char_model.py                                Python's own manual
mpirun -n 4 python char_model.py my.txt
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import hpcopt

LENGTH = 64  # characters of a sample

parser = argparse.ArgumentParser()
parser.add_argument("text", nargs="?", type=Path)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--run-dir", default="runs/char_model")
options = parser.parse_args()


class Passages(Dataset[Tensor]):
    """A text, cut into passages of numbers of characters, (LENGTH + 1,)."""

    def __init__(self, text: str) -> None:
        self.alphabet = sorted(set(text))
        number = {character: index for index, character in enumerate(self.alphabet)}
        self.numbers = torch.tensor([number[character] for character in text])

    def __len__(self) -> int:
        return (len(self.numbers) - 1) // LENGTH

    def __getitem__(self, index: int) -> Tensor:
        return self.numbers[index * LENGTH : (index + 1) * LENGTH + 1]


class Guesser(nn.Module):
    """Logits of the next character, (n, LENGTH, characters), after each of the characters before, (n, LENGTH)."""

    def __init__(self, characters: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, numbers: Tensor) -> Tensor:
        logits: Tensor = self.head(self.memory(self.embedding(numbers))[0])
        return logits


def manual() -> str:
    """Python's own, some 700,000 characters."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values())


passages = Passages(options.text.read_text() if options.text else manual())

with hpcopt.Session(options.run_dir, steps=options.steps, settings={"text": options.text}) as session:
    model = Guesser(len(passages.alphabet)).to(session.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    session.keep(model=model, optimizer=optimizer)
    exchange = session.exchange(model)
    loader = DataLoader(passages, batch_sampler=session.sampler(passages, batch=48))
    for numbers in session.steps(loader):
        numbers = numbers.to(session.device)
        exchange.zero()
        loss = F.cross_entropy(model(numbers[:, :-1]).flatten(0, 1), numbers[:, 1:].flatten())
        loss.backward()
        exchange.finish()
        optimizer.step()
        session.log(loss=loss, bits_per_character=loss / math.log(2))
