"""A language model of characters, on any text file: an LSTM that guesses the next one.

python char_model.py                                Python's own manual
mpirun -n 4 python char_model.py my.txt
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import hpcopt
from hpcopt.models import LstmConfig

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


def manual() -> str:
    """Python's own, some 700,000 characters."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values())


passages = Passages(options.text.read_text(encoding="utf-8") if options.text else manual())

with hpcopt.Session(options.run_dir, steps=options.steps, settings={"text": options.text}) as session:
    model = LstmConfig(width=128, units=128).build(len(passages.alphabet), LENGTH).to(session.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    session.keep(model=model, optimizer=optimizer)
    exchange = session.exchange(model)
    loader = DataLoader(passages, batch_sampler=session.sampler(passages, batch=48))
    for numbers in session.steps(loader):
        numbers = numbers.to(session.device)
        exchange.zero()
        loss = model(numbers[:, :-1], numbers[:, 1:]).mean()
        loss.backward()
        exchange.finish()
        optimizer.step()
        session.log(loss=loss, bits_per_character=loss / math.log(2))
