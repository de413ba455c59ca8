"""Batches on their way to a GPU, while it computes the steps before.

They are copied to page-locked memory and from there, by a stream of their own, to memory that belongs to the stream
that computes. Who takes one lets that stream wait for the copies, and itself waits for nothing. The copies wait for
what the device had been given when they were asked for, whose memory they may take over.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hpcopt.pinned import Pool
from hpcopt.workloads.ahead import ahead


class Handover:
    """To one device, for the stream that is current where this is made."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        self._home, self._copies = self._module.current_stream(device), self._module.Stream(device=device)
        self._pool = Pool()

    def batches(self, batches: Iterator[Any], *, beside: bool) -> Iterator[Any]:
        """The batches, on the device; a thread makes them before they are asked for, or they are made then."""
        under_way = (self._sent(batch) for batch in batches)
        for batch, arrived in ahead(under_way) if beside else under_way:
            self._home.wait_event(arrived)
            yield batch

    def _sent(self, batch: Any) -> tuple[Any, Any]:
        """A batch under way, and the event of its arrival."""
        if not hasattr(batch, "moved"):
            with self._module.stream(self._home):
                return batch.to(self._device), self._home.record_event()
        return batch.moved(self._copied, self._device), self._copies.record_event()

    def _copied(self, x: Tensor) -> Tensor:
        with self._module.stream(self._home):
            there = torch.empty(x.shape, dtype=x.dtype, device=self._device)
        there.record_stream(self._copies)
        self._copies.wait_event(self._home.record_event())
        with self._module.stream(self._copies):
            slot = self._pool.lend(there)
            slot.host.copy_(x)
            slot.deliver(there)
        return there
