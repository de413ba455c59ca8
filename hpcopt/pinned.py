"""Main memory that a GPU copies to and from by itself: page-locked, made once and lent again and again.

A copy to or from other memory is two, and the thread that asks for it waits until the device has come so far. Copies
here go in the order of the thread's current stream: into main memory the thread waits for that stream alone, and out of
it for nothing.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LEAST_BYTES = 512


def page_locked(size: int) -> Tensor:
    """Shape (size,), uint8."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def passed(device: torch.device) -> Any:
    """An event behind all that was given to the current stream of a device."""
    module = torch.get_device_module(device)
    event = module.Event(blocking=True)  # who waits for it leaves the core to others
    event.record(module.current_stream(device))
    return event


class Slot:
    """Memory for one tensor of a device, until it is given back.

    Attributes:
        host: of the tensor's shape and dtype, in main memory.
    """

    __slots__ = ("_memory", "_pool", "host")

    def __init__(self, pool: "Pool", memory: Tensor, like: Tensor) -> None:
        self._pool, self._memory = pool, memory
        self.host = memory[: like.nbytes].view(like.dtype).view(like.shape)

    def fetch(self, x: Tensor) -> Tensor:
        """Bring a tensor's values here; wait for them."""
        self.host.copy_(x.detach(), non_blocking=True)
        if not x.is_cpu:
            passed(x.device).synchronize()
        return self.host

    def deliver(self, x: Tensor, head: int | None = None) -> None:
        """Send the values to a tensor, or their first ``head`` bytes, and give the memory back."""
        target, source = x.detach(), self.host
        if head is not None:
            target, source = (part.view(-1).view(torch.uint8)[:head] for part in (target, source))
        target.copy_(source, non_blocking=True)
        self._pool.keep(self._memory, None if x.is_cpu else passed(x.device))

    def give_back(self) -> None:
        """What was fetched is no longer needed."""
        self._pool.keep(self._memory, None)


class Pool:
    """Slots, by their size rounded up to a power of two. Threads may share it.

    Attributes:
        made: how many there are.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[tuple[Tensor, Any]]] = defaultdict(deque)
        self.made = 0

    def lend(self, like: Tensor) -> Slot:
        """For a tensor of this size, dtype and device; on the CPU, of ordinary memory."""
        size = 1 << (max(like.nbytes, LEAST_BYTES) - 1).bit_length()
        free = self._free[size]
        try:
            memory, busy = free.popleft()
        except IndexError:
            return self._new(size, like)
        if busy is not None and not busy.query():  # the device still reads it
            free.append((memory, busy))
            return self._new(size, like)
        return Slot(self, memory, like)

    def fetched(self, x: Tensor) -> Slot:
        """A slot with a tensor's values."""
        slot = self.lend(x)
        slot.fetch(x)
        return slot

    def keep(self, memory: Tensor, busy: Any) -> None:
        """Take memory back, which the device reads until it has passed an event."""
        self._free[memory.numel()].append((memory, busy))

    def _new(self, size: int, like: Tensor) -> Slot:
        self.made += 1
        return Slot(self, torch.empty(size, dtype=torch.uint8) if like.is_cpu else page_locked(size), like)


POOL = Pool()  # for what is looked at, or sent, now and then


def seen(x: Tensor) -> Tensor:
    """x itself, or of a device's tensor a copy in main memory, for which the current stream is waited for."""
    if x.is_cpu:
        return x
    slot = POOL.fetched(x)
    copy = slot.host.clone()
    slot.give_back()
    return copy


def numbers(looks: Sequence[Tensor]) -> list[Any]:
    """What tensors of one shape hold, by one question to their device for all."""
    if all(x.is_cpu for x in looks):
        return [x.tolist() for x in looks]
    return seen(torch.stack(list(looks))).tolist()


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on a device, in the order of its current stream; nobody waits."""
    if device.type == "cpu":
        return x
    there = torch.empty(x.shape, dtype=x.dtype, device=device)
    slot = POOL.lend(there)
    slot.host.copy_(x)
    slot.deliver(there)
    return there
