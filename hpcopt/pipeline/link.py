"""Messages between the ranks of neighbouring stages: what goes up with the data, and what comes back down.

Nobody waits for a message to leave, and a receive can be posted before there is use for it. With a codec a message is a
payload; one that knows rows takes samples for them. A solver may name a reference that both ends know, such as an
auxiliary that the receiver itself has sent up: then the payload is of the difference, which is small, and the receiver
adds it to the reference.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hpcopt.comm.transport import Request
from hpcopt.compress import Codec
from hpcopt.errors import NonFiniteError
from hpcopt.seeds import derive
from hpcopt.shapes.context import Context

UP = 1
DOWN = 2
TAKEN = 3
_WAYS = {UP: "up", DOWN: "down"}


class Link:
    """This rank's end of a boundary to one neighbour.

    Attributes:
        waited_s: seconds for which this rank has waited for the neighbour.
    """

    def __init__(self, context: Context, neighbour: int, codec: Codec | None, under_way: int) -> None:
        """Let ``under_way`` sends be pending before one is waited for; what comes lands on the context's device."""
        world = context.world
        self._transport, self._neighbour, self._codec = world.transport, neighbour, codec
        self._watch, self._ends = world.watch, (world.ranks[world.rank], world.ranks[neighbour])
        self._clock, self._device, self._seed = context.clock, context.device, context.seed("link")
        self._under_way = under_way
        self._sends: deque[tuple[Request, Tensor]] = deque()
        self._posted: defaultdict[int, deque[tuple[Request, Tensor]]] = defaultdict(deque)
        self.waited_s = 0.0

    def send(self, x: Tensor, tag: int, number: int, reference: Tensor | None = None) -> None:
        """Send what belongs to batch ``number``, of any shape; with a codec, what it is beyond the reference, without
        a gradient. Costs one message of its bytes. Inf and NaN that a codec does not carry arrive as NaN.
        """
        self._transport.traffic.dense_bytes += x.numel() * x.element_size()
        if self._codec is None:
            self._post(x.detach().contiguous(), tag)
            return
        with self._clock("encode"):
            flat = (x if reference is None else x - reference).detach().reshape(-1).float()
            seed = derive(self._seed, number, self._transport.rank, _WAYS.get(tag, str(tag)))
            try:
                payload = self._codec.for_tensor("", tuple(x.shape)).encode(flat, seed=seed)
            except NonFiniteError:
                payload = torch.empty(0, dtype=torch.uint8, device=flat.device)
        self._post(payload, tag)

    def expect(self, shape: Sequence[int], dtype: torch.dtype, tag: int) -> None:
        """Post the receive of a message of this shape, which ``receive`` then waits for: it can arrive meanwhile."""
        if self._codec is None or tag == TAKEN:
            room = torch.empty(*shape, dtype=dtype, device=self._device)
        else:
            most = self._codec.for_tensor("", tuple(shape)).max_bytes(math.prod(shape))
            room = torch.empty(most, dtype=torch.uint8, device=self._device)
        exact = self._codec is None or tag == TAKEN  # a payload may be shorter than its room
        self._posted[tag].append((self._transport.receive(room, self._neighbour, tag, exact=exact), room))

    def receive(self, shape: Sequence[int], dtype: torch.dtype, tag: int, reference: Tensor | None = None) -> Tensor:
        """Wait for the next message of this tag, and shape; with a codec, add it to the reference."""
        if not self._posted[tag]:
            self.expect(shape, dtype, tag)
        request, room = self._posted[tag].popleft()
        with self._waiting("for", tag):
            received_bytes = request.wait()
        if self._codec is None or tag == TAKEN:
            return room
        values = math.prod(shape)
        with self._clock("decode"):
            if values and not received_bytes:
                flat = torch.full((values,), math.nan, device=self._device)
            else:
                flat = self._codec.for_tensor("", tuple(shape)).decode(room[:received_bytes], values)
        decoded = flat.view(*shape).to(dtype)
        return decoded if reference is None else reference + decoded

    def tell_taken(self) -> None:
        """Let the neighbour know that a batch of its has been taken: one byte."""
        self._post(torch.zeros(1, dtype=torch.uint8), TAKEN)

    def wait_until_taken(self) -> None:
        """Wait until the neighbour has taken one more batch."""
        self.receive((1,), torch.uint8, TAKEN)

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
        way = f" {_WAYS[tag]}" if tag in _WAYS else ""
        what = f"rank {self._ends[0]}'s wait {why} auxiliaries{way}, rank {self._ends[1]} at the other end"
        start_s = time.perf_counter()
        with self._clock("exchange"), self._watch(what, sorted(self._ends)):
            yield
        self.waited_s += time.perf_counter() - start_s
