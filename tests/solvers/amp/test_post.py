"""Letters between nodes arrive as they were."""

import pytest
import torch

from hpcopt.dataflow import Message, State
from hpcopt.errors import UnsupportedError
from hpcopt.solvers.amp.post import Kind, Letter, packed, unpacked

CPU = torch.device("cpu")
VALUES = (
    torch.randn(3, 2),
    None,
    torch.tensor([True, False, True]),
    torch.zeros(0, 4),
    torch.tensor(2.5, dtype=torch.float64),
    torch.arange(5),
    torch.randn(3).bfloat16(),
    torch.randn(4, 3).t(),
)


@pytest.mark.parametrize("payload", [(), VALUES], ids=["nothing", "everything"])
@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.BACKWARD])
def test_a_letter_arrives_as_it_was(kind, payload):
    letter = Letter(kind, 7, 2, Message(State(1 << 40, (3, -1), (5, 6, 7)), payload))
    found = unpacked(packed(letter), CPU)
    assert found[:3] == letter[:3] and found.message.state == letter.message.state
    assert found.message.state.shape == (() if kind is Kind.BACKWARD else (5, 6, 7))
    for x, y in zip(found.message.payload, payload, strict=True):
        assert (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))


def test_values_without_a_code_are_refused():
    with pytest.raises(UnsupportedError, match="complex64"):
        packed(Letter(Kind.FORWARD, 0, 0, Message(State(0), (torch.zeros(1, dtype=torch.complex64),))))
