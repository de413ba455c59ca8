"""Messages between the ranks of neighbouring stages: auxiliaries going up, and coming back down.

Up goes the sender's prediction p = f(z) + u, down the moved auxiliary z. With a codec, down goes the encoding of z - p,
which is small, and its receiver adds it to the p that it knows exactly.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hpcopt.comm.transport import Request
from hpcopt.compress import Codec
from hpcopt.seeds import derive
from hpcopt.shapes.context import Context

UP = 1
DOWN = 2


class Link:
    """This rank's end of a boundary to one neighbour."""

    def __init__(self, context: Context, neighbour: int, codec: Codec | None, under_way: int) -> None:
        """Let ``under_way`` sends be pending before one is waited for; what comes lands on the context's device."""
        world = context.world
        self._transport, self._neighbour, self._codec = world.transport, neighbour, codec
        self._watch, self._ends = world.watch, (world.ranks[world.rank], world.ranks[neighbour])
        self._clock, self._device, self._seed = context.clock, context.device, context.seed("link")
        self._under_way = under_way
        self._sends: deque[tuple[Request, Tensor]] = deque()

    def send(self, x: Tensor, tag: int, number: int, reference: Tensor | None = None) -> None:
        """Send the auxiliaries of batch ``number``, shape (n, ...); with a codec, what they are beyond the reference.
        Costs one message of their bytes, with a codec a second one of eight bytes.
        """
        self._transport.traffic.dense_bytes += x.numel() * x.element_size()
        if self._codec is None:
            self._post(x.detach().contiguous(), tag)
            return
        with self._clock("encode"):
            flat = (x if reference is None else x - reference).detach().reshape(-1).float()
            seed = derive(self._seed, number, self._transport.rank, "up" if tag == UP else "down")
            payload = self._codec.encode(flat, seed=seed)
        self._post(torch.tensor([payload.numel()]), tag)
        self._post(payload, tag)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, tag: int, reference: Tensor | None = None) -> Tensor:
        """Wait for auxiliaries of this shape; with a codec, add them to the reference."""
        if self._codec is None:
            out = torch.empty(*shape, dtype=dtype, device=self._device)
            with self._waiting("for", tag):
                self._transport.receive(out, self._neighbour, tag).wait()
            return out
        length = torch.zeros(1, dtype=torch.int64)
        with self._waiting("for", tag):
            self._transport.receive(length, self._neighbour, tag).wait()
            payload = torch.empty(int(length), dtype=torch.uint8, device=self._device)
            self._transport.receive(payload, self._neighbour, tag).wait()
        with self._clock("decode"):
            flat = self._codec.decode(payload, torch.Size(shape).numel())
        decoded = flat.view(*shape).to(dtype)
        return decoded if reference is None else reference + decoded

    def flush(self) -> None:
        """Wait until nothing is under way."""
        self._wait_for_sends(0)

    def _post(self, x: Tensor, tag: int) -> None:
        self._wait_for_sends(self._under_way)
        with self._clock("exchange"):
            self._sends.append((self._transport.send(x, self._neighbour, tag), x))

    def _wait_for_sends(self, pending: int) -> None:
        """Until no more than that are pending."""
        while len(self._sends) > pending:
            request, _ = self._sends[0]
            with self._waiting("until the other takes"):
                request.wait()
            self._sends.popleft()

    @contextmanager
    def _waiting(self, why: str, tag: int | None = None) -> Iterator[None]:
        """Count the body, which waits for the neighbour, and let whoever watches for stalls know of it."""
        way = "" if tag is None else " up" if tag == UP else " down"
        what = f"rank {self._ends[0]}'s wait {why} auxiliaries{way}, rank {self._ends[1]} at the other end"
        with self._clock("exchange"), self._watch(what, sorted(self._ends)):
            yield
