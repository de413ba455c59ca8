"""Transports of threads keep the transports' contract (those of processes: tests/comm/test_mpi.py), and it notices what
does not.
"""

import threading

import pytest
import torch

from hpcopt.comm.loopback import LoopbackHub, LoopbackTransport, run_ranks
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.traffic import Traffic
from hpcopt.errors import PeerError, UnsupportedError
from hpcopt.testing.messages import check_messages
from hpcopt.testing.transport import check_failure, check_transport


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_threads_keep_the_contract(size):
    run_ranks(size, check_transport)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_copies_on_the_way_keep_the_contract(size):
    run_ranks(size, lambda transport: check_transport(StagedTransport(transport, away=lambda x: True)))


def test_one_imagined_rank_keeps_the_contract():
    check_transport(RehearsalTransport(1))


def test_threads_that_fail_wake_the_others():
    check_failure(run_ranks)


class Planted(LoopbackTransport):
    """Threads again, whose parts make the same mistake."""

    def split(self, color, key):
        return self._again(super().split(color, key), self.traffic)

    def duplicate(self):
        return self._again(super().duplicate(), Traffic())

    def _again(self, part, traffic):
        return type(self)(part._hub, part.rank, traffic)


class Aliasing(Planted):
    """Sends what the buffer holds when it is received."""

    def send(self, x, to, tag=0):
        request = super().send(x, to, tag=-1)
        self._hub.mailbox(self.rank, to, tag).put(x)
        return request


class Untagged(Planted):
    """Takes the next message, whatever it is."""

    def send(self, x, to, tag=0):
        return super().send(x, to)

    def receive(self, out, source, tag=0, *, exact=True):
        return super().receive(out, source, exact=exact)


class Short(Planted):
    """Takes fewer bytes than were expected."""

    def receive(self, out, source, tag=0, *, exact=True):
        return super().receive(out, source, tag, exact=False)


class Boastful(Planted):
    """Says that all of a buffer was received."""

    def receive(self, out, source, tag=0, *, exact=True):
        request = super().receive(out, source, tag, exact=exact)

        class Full:
            def wait(self):
                request.wait()
                return out.numel() * out.element_size()

        return Full()


class Waiting(Planted):
    """Sends only to who is there to receive."""

    def send(self, x, to, tag=0):
        request = super().send(x, to, tag)
        while not self._hub.mailbox(self.rank, to, tag).empty() and not self._hub.failed:
            threading.Event().wait(0.001)
        return request


class Uncounted(Planted):
    """Counts messages of float32 only, whatever they are."""

    def send(self, x, to, tag=0):
        before = self.traffic.sent_bytes
        request = super().send(x, to, tag)
        self.traffic.sent_bytes = before + 4 * x.numel()
        return request


class Uncollected(Planted):
    """Counts no gathering."""

    def all_gather(self, x, out):
        before = self.traffic.sent_bytes
        super().all_gather(x, out)
        self.traffic.sent_bytes = before


class Apart(Planted):
    """Adds its own values first."""

    def all_reduce(self, x, op="sum"):
        if op != "sum" or not x.is_floating_point():
            super().all_reduce(x, op)
            return
        parts = x.new_empty(self.size, *x.shape)
        super().all_gather(x.clone(), parts)
        for source in range(1, self.size):
            x += parts[(self.rank + source) % self.size]


class Rooted(Planted):
    """Broadcasts from rank 0."""

    def broadcast(self, x, root=0):
        super().broadcast(x, 0)


class Straight(Planted):
    """Does not transpose."""

    def all_to_all(self, x, out):
        out.copy_(x)


class Open(Planted):
    """Has a barrier that nobody waits at."""

    def barrier(self):
        pass


class Unordered(Planted):
    """Knows no keys."""

    def split(self, color, key):
        return super().split(color, self.rank)


class Meeting(Planted):
    """Makes duplicates whose messages meet its own."""

    def duplicate(self):
        return type(self)(self._hub, self.rank, Traffic())


class Mute(Planted):
    """Says that it has no messages, and swallows them."""

    point_to_point = False


class Nameless(Planted):
    """Does not say who refuses."""

    def duplicate(self):
        raise UnsupportedError("no duplicates here")


class Forgetful(Planted):
    """Shares other memory each time."""

    def shared_memory(self):
        self._shared = None
        return super().shared_memory()


MISTAKES = {
    Aliasing: "changed after its send",
    Untagged: "is not what was sent|sent .* x torch",
    Short: "are no PeerError",
    Boastful: "is told as",
    Uncounted: "of a message of 14 bytes 28 are counted",
    Uncollected: "all_gather of .* is counted as 0",
    Apart: "other bits on other ranks",
    Rooted: "broadcast .* from 1",
    Straight: "all_to_all",
    Open: "did not wait for the last",
    Unordered: "its group",
    Meeting: "meet those of the whole|sent .* x torch",
    Mute: "does not refuse them",
    Nameless: "without the transport's name",
    Forgetful: "other memory at the next call",
}


@pytest.mark.parametrize(("kind", "complaint"), MISTAKES.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_what_breaks_the_contract_is_noticed(kind, complaint):
    with pytest.raises((AssertionError, PeerError), match=complaint):
        run_ranks(3, lambda transport: check_transport(kind(transport._hub, transport.rank)))


def test_sends_that_wait_for_receives_are_noticed():
    with pytest.raises(AssertionError, match="sends still wait"):
        run_ranks(2, lambda transport: check_messages(Waiting(transport._hub, transport.rank), patience_s=0.5))


def test_failures_that_wake_nobody_are_noticed():
    def run(size, program):
        """Ranks that go on as if nothing had happened."""
        hub = LoopbackHub(1)
        return [program(Alone(hub, rank, size)) for rank in range(size)]

    class Alone(RehearsalTransport):
        def __init__(self, hub, rank, size):
            super().__init__(size, rank)

        def receive(self, out, source, tag=0, *, exact=True):
            return LoopbackTransport(LoopbackHub(1), 0).send(torch.ones(1), 0)

    with pytest.raises(AssertionError, match="went on without"):
        check_failure(run)
