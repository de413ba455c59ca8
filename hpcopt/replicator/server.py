"""Asynchronous training: sync groups that do not wait for each other, and a rank that holds the parameters.

At its step, replica 0 of a group sends the server the group's mean gradients; the server updates its parameters with
its own copy of the optimizer, and sends them back. Meanwhile other groups' updates may have landed: their number is the
update's staleness (Dean et al. 2012, "Large Scale Distributed Deep Networks"). A scheduler runs in the groups; the
numbers in ``param_groups``, such as ``lr``, travel with the gradients.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpcopt.comm.transport import Request, Transport, wait_all
from hpcopt.comm.world import World
from hpcopt.errors import PeerError
from hpcopt.replicator.optimizer import Wrapped

POLL_S = 5e-5
LEAVES, FAILS = -1, -2  # in the place of an optimizer's index
STOP = -1  # in the place of a version


class Server:
    """Holds the parameters.

    Attributes:
        optimizers: in the order in which they were wrapped.
        staleness: how many updates had which staleness.
    """

    def __init__(self, transport: Transport, leaders: Sequence[int]) -> None:
        """Serve the groups whose replicas 0 are these ranks of a transport of the server's own."""
        self._transport, self._leaders = transport, leaders
        self.optimizers: list[Wrapped] = []
        self.staleness: Counter[int] = Counter()
        self._versions: Counter[int] = Counter()
        self._stop, self._failure = False, cast(Exception | None, None)

    def serve(self) -> None:
        """Until every group has left. Where something has failed, groups are told to stop at their next step.

        Raises:
            Exception: the server's own.
        """
        headers = {leader: torch.empty(2, dtype=torch.int64) for leader in self._leaders}
        waiting: dict[int, Request] = {leader: self._transport.receive(headers[leader], leader) for leader in headers}
        self._stop, self._failure = False, None
        while waiting:
            for leader in [leader for leader, request in waiting.items() if request.done()]:
                waiting.pop(leader).wait()
                index, version = headers[leader].tolist()
                if index >= 0:
                    self._answer(self.optimizers[index], version, leader)
                    waiting[leader] = self._transport.receive(headers[leader], leader)
                self._stop = self._stop or index == FAILS
            time.sleep(POLL_S)
        if self._failure is not None:
            raise self._failure

    def _answer(self, wrapped: Wrapped, read_version: int, leader: int) -> None:
        """Take in a group's gradients, and send back the parameters, or that it is to stop."""
        values = options(wrapped.optimizer)
        wait_all([self._transport.receive(x, leader) for x in (values, *wrapped.gradients())])
        if not self._stop:
            try:
                self._update(wrapped, values, read_version)
            except Exception as error:
                self._stop, self._failure = True, error
        version = torch.tensor([STOP if self._stop else self._versions[wrapped.index]])
        answer = [version] if self._stop else [version, *wrapped.flat_parameters()]
        wait_all([self._transport.send(x, leader) for x in answer])

    def _update(self, wrapped: Wrapped, values: Tensor, read_version: int) -> None:
        set_options(wrapped.optimizer, values)
        for bucket in wrapped.exchange.buckets:
            for p, view in bucket.views.items():
                p.grad = view
        wrapped.apply()
        self.staleness[self._versions[wrapped.index] - read_version] += 1
        self._versions[wrapped.index] += 1


class Client:
    """A sync group's way to the server."""

    def __init__(self, transport: Transport, group: World, server: int) -> None:
        self._transport, self._group, self._server = transport, group, server
        self._versions: Counter[int] = Counter()

    def update(self, wrapped: Wrapped) -> None:
        """Send the group's gradients, and take over the server's parameters. Collective: over the group.

        Raises:
            PeerError: on all ranks of the group: another one has failed.
        """
        version = torch.empty(1, dtype=torch.int64)
        if self._group.rank == 0:
            header = torch.tensor([wrapped.index, self._versions[wrapped.index]])
            outgoing = [header, options(wrapped.optimizer), *wrapped.gradients()]
            wait_all([self._transport.send(x, self._server) for x in outgoing])
            self._transport.receive(version, self._server).wait()
        if int(self._group.broadcast(version)) == STOP:
            raise PeerError("another sync group has failed").everywhere()
        flats = wrapped.flat_parameters()
        if self._group.rank == 0:
            wait_all([self._transport.receive(flat, self._server) for flat in flats])
        wrapped.set_parameters([self._group.broadcast(flat) for flat in flats])
        self._versions[wrapped.index] = int(version)
        self._group.traffic.add(self._transport.traffic.lap())

    @contextmanager
    def present(self) -> Iterator[None]:
        """Tell the server at the end of the body that no more comes from this group, and whether it failed."""
        last = FAILS
        try:
            yield
            last = LEAVES
        finally:
            if self._group.rank == 0:
                self._transport.send(torch.tensor([last, 0]), self._server).wait()


def options(optimizer: Optimizer) -> Tensor:
    """The numbers in its groups, as float64: learning rates and the like."""
    groups = optimizer.param_groups
    return torch.tensor([float(group[key]) for group in groups for key in _numbers(group)], dtype=torch.float64)


def set_options(optimizer: Optimizer, values: Tensor) -> None:
    """Take over another rank's numbers."""
    numbers = iter(values.tolist())
    for group in optimizer.param_groups:
        for key in _numbers(group):
            group[key] = type(group[key])(next(numbers))


def _numbers(group: dict[str, object]) -> list[str]:
    return sorted(key for key, value in group.items() if type(value) in (int, float))
