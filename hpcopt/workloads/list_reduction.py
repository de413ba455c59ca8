"""Reduce a list of digits by an operator: the task on which AMPNet trains a recurrent network (arXiv:1705.09786).

The operator stands before the digits; the answer, a class, is the rounded result modulo 10.
"""

from typing import Literal

import numpy as np
import torch

from hpcopt.dataflow.instance import Instance
from hpcopt.models.list_rnn import ListRnn
from hpcopt.shapes.context import Context
from hpcopt.workloads.instances import InstanceConfig, InstanceWorkload

DIGITS, LONGEST = 10, 10
OPERATORS = ("mean", "difference", "range", "length")


class ListReductionConfig(InstanceConfig):
    """Lists of up to ten digits with an operator, and a recurrent network whose length is theirs."""

    name: Literal["list_reduction"] = "list_reduction"

    def build(self, context: Context) -> InstanceWorkload:
        return InstanceWorkload(
            self, context.run_seed, draw, lambda: ListRnn(DIGITS + len(OPERATORS), self.hidden, DIGITS)
        )


def draw(generator: np.random.Generator) -> Instance:
    """A list: its tokens, (n + 1,), and the answer, (1,)."""
    operator = int(generator.integers(len(OPERATORS)))
    digits = generator.integers(DIGITS, size=generator.integers(1, LONGEST + 1))
    tokens = torch.tensor([DIGITS + operator, *digits.tolist()])
    return Instance((tokens,), (torch.tensor([answer(operator, digits)]),))


def answer(operator: int, digits: np.ndarray) -> int:
    """What an operator makes of digits, (n,): a class. The difference is that of the means of even and odd places.

    >>> [answer(operator, np.array([1, 8, 3])) for operator in range(4)]
    [4, 4, 7, 3]
    """
    match OPERATORS[operator]:
        case "mean":
            value = float(digits.mean())
        case "difference":
            value = float(digits[::2].mean()) - (float(digits[1::2].mean()) if len(digits) > 1 else 0.0)
        case "range":
            value = float(digits.max() - digits.min())
        case _:
            value = float(len(digits))
    return round(value) % DIGITS
