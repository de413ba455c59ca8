"""Messages between nodes on different ranks: one buffer each, an int64 header and the values' bytes behind it."""

import itertools
from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.transport import Request
from hpcopt.comm.world import World
from hpcopt.dataflow.message import Message, Payload, State
from hpcopt.errors import UnsupportedError

TAG = 21
_WORD = 8
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPES = (*_FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


class Kind(IntEnum):
    """What a letter is about."""

    FORWARD = 0
    BACKWARD = 1
    STEP = 2  # is over
    DRAINED = 3  # no instance is in flight


class Letter(NamedTuple):
    """A message for a port of a node; those of the last two kinds have neither."""

    kind: Kind
    node: int = 0
    port: int = 0
    message: Message = Message(State(0), ())


class Post:
    """This rank's letters to and from the others."""

    def __init__(self, world: World, device: torch.device) -> None:
        """Values land on a device; between ranks they are in main memory."""
        self._world, self._device = world, device
        self._sends: deque[tuple[Request, Tensor]] = deque()
        self.sent = 0  # letters

    def send(self, to: int, letter: Letter) -> None:
        """Start sending a letter."""
        while self._sends and self._sends[0][0].done():
            self._sends.popleft()[0].wait()
        buffer = packed(letter)
        self._sends.append((self._world.transport.send(buffer, to, TAG), buffer))
        self.sent += 1

    def take(self, *, wait: bool) -> Letter | None:
        """The next letter that has come, from whichever rank; None if there is none and it is not to wait."""
        transport = self._world.transport
        taken = transport.take(TAG)
        if taken is None and wait:
            ranks = list(self._world.ranks)
            with self._world.watch(f"rank {ranks[self._world.rank]}'s wait for messages between nodes", ranks):
                taken = transport.take(TAG, wait=True)
        return None if taken is None else unpacked(taken[1], self._device)

    def flush(self) -> None:
        """Wait until nothing that was sent is under way."""
        while self._sends:
            self._sends.popleft()[0].wait()


def packed(letter: Letter) -> Tensor:
    """A letter as uint8, of whole words of eight bytes.

    Raises:
        UnsupportedError: a value is of a kind that has no code.
    """
    state, payload = letter.message.state, letter.message.payload
    shape = () if letter.kind is Kind.BACKWARD else state.shape
    head = [letter.kind, letter.node, letter.port, state.instance]
    head += [len(state.at), *state.at, len(shape), *shape, len(payload)]
    for x in payload:
        head += [-1] if x is None else [_code(x), x.dim(), *x.shape]
    parts = [np.array([len(head), *head], np.int64).view(np.uint8)]
    for x in payload:
        if x is not None and x.numel():
            values = x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            parts += [values, np.zeros(-len(values) % _WORD, np.uint8)]
    return torch.from_numpy(np.concatenate(parts))


def unpacked(buffer: Tensor, device: torch.device) -> Letter:
    """The letter, its values views of the buffer if that is where they are wanted."""
    words = int(buffer[:_WORD].view(torch.int64)) + 1
    head = iter(buffer[_WORD : _WORD * words].view(torch.int64).tolist())
    kind, node, port, instance = itertools.islice(head, 4)
    at, shape = _counted(head), _counted(head)
    values: list[Tensor | None] = []
    place = _WORD * words
    for _ in range(next(head)):
        code = next(head)
        if code < 0:
            values.append(None)
            continue
        dtype, sizes = _DTYPES[code], _counted(head)
        length = torch.Size(sizes).numel() * dtype.itemsize
        values.append(buffer[place : place + length].view(dtype).view(sizes).to(device))
        place += length + -length % _WORD
    payload: Payload = tuple(values)
    return Letter(Kind(kind), node, port, Message(State(instance, at, shape), payload))


def _counted(head: Iterator[int]) -> tuple[int, ...]:
    """So many of the next numbers as the first of them says."""
    return tuple(itertools.islice(head, next(head)))


def _code(x: Tensor) -> int:
    if x.dtype not in _DTYPES:
        raise UnsupportedError(f"a message between nodes on different ranks cannot have values of {x.dtype}")
    return _DTYPES.index(x.dtype)
