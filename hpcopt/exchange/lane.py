"""An exchange's own way through a GPU: beside what the backward pass gives the device, and behind what it needs of it.

A hook notes the stream that a gradient is made on. Before a bucket goes, its events are set there, and the exchange's
stream waits for them: so nothing is read before it is whole, whatever streams a person computes on, and the thread that
exchanges waits for its own stream alone, never for the device. At the end of a step the training's stream waits for an
event of the exchange's.

What a reducer cannot do on the device it does to a copy of the bucket in page-locked memory, made once, by the code
that a CPU would run. In main memory there is no lane, and nothing of this costs anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcopt.comm.transport import Transport
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.reducer import Reducer
from hpcopt.pinned import Pool, Slot


class Lane:
    """A device's stream for one exchange, with its events and its copies of buckets."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        self._stream = self._module.Stream(device=device, priority=-1)  # what is short goes before what is long
        self._givers: set[Any] = set()
        self._pool, self._slots = Pool(), dict[int, Slot]()

    def note(self) -> None:
        """What the current stream has been given so far is to be done before the next bucket goes."""
        self._givers.add(self._module.current_stream(self._device))

    def behind(self, work: Callable[[], None]) -> Callable[[], None]:
        """The same work on this lane's stream, after all that was noted."""
        events = [stream.record_event() for stream in self._givers]

        def run() -> None:
            with self._module.stream(self._stream):
                for event in events:
                    self._stream.wait_event(event)
                work()

        return run

    def join(self) -> None:
        """Whatever the current stream is given from now on comes after the lane's work. The host waits for nothing."""
        self._module.current_stream(self._device).wait_stream(self._stream)
        self._givers.clear()

    def reduce(self, reducer: Reducer, transport: Transport, bucket: Bucket, step: int) -> None:
        """As ``Reducer.reduce``, where the reducer can do it. Collective."""
        if reducer.on_device(transport, bucket):
            reducer.reduce(transport, bucket, step)
            return
        copy = self._copy(bucket)
        with transport.traffic.waiting():
            self._slots[bucket.index].fetch(bucket.values)
        try:
            reducer.reduce(transport, copy, step)
        finally:  # what cannot be sent is NaN, and an error
            bucket.values.copy_(copy.values, non_blocking=True)

    def seen(self, reducer: Reducer, transport: Transport, buckets: Sequence[Bucket]) -> list[Bucket]:
        """The buckets as the reducer will be given them."""
        return [bucket if reducer.on_device(transport, bucket) else self._copy(bucket) for bucket in buckets]

    def _copy(self, bucket: Bucket) -> Bucket:
        """In memory that the lane's stream alone writes to and reads, which keeps two steps apart."""
        if bucket.index not in self._slots:
            self._slots[bucket.index] = self._pool.lend(bucket.values)
        return bucket.at(self._slots[bucket.index].host)


def lane_for(tensors: Sequence[Tensor]) -> Lane | None:
    """A lane on the device where tensors are; None in main memory."""
    away = [x.device for x in tensors if not x.is_cpu]
    return Lane(away[0]) if away else None
