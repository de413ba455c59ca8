"""Collectives over TCP, against numpy's sums and what loopback ranks do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hpcopt.comm.links import Links, LostRankError
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.sockets import SocketTransport
from hpcopt.comm.world import World
from hpcopt.errors import PeerError
from tests.launching import PATIENCE_S


@pytest.fixture
def ranks():
    """Runs a program on so many ranks, each with connections of its own."""
    opened: list[Links] = []

    def run(size, program):
        links = [Links(f"{rank}.0.x", "key") for rank in range(size)]
        opened.extend(links)
        addresses = {link.name: link.address for link in links}

        def main(link):
            link.enter(1, tuple(addresses), addresses)
            return program(SocketTransport(link))

        with ThreadPoolExecutor(size) as threads:
            return [done.result(PATIENCE_S) for done in [threads.submit(main, link) for link in links]]

    yield run
    for link in opened:
        link.close()


def every_collective(transport) -> list[np.ndarray]:
    rank, size = transport.rank, transport.size
    world, random = World(transport), np.random.default_rng(rank)
    short, long = (torch.from_numpy(random.standard_normal(count).astype(np.float32)) for count in (7, 100_003))
    pieces = torch.arange(size * 3).view(size, 3) + 100 * rank
    swapped = torch.empty_like(pieces)
    transport.all_to_all(pieces, swapped)
    half = world.split(rank % 2, -rank)
    aside = transport.duplicate()
    found = [
        world.all_reduce(short),
        world.all_reduce(long),
        world.all_gather(torch.tensor([float(rank)])),
        world.broadcast(torch.full((5,), float(rank)), size - 1),
        swapped,
        half.all_reduce(torch.tensor([1.0 + rank])),
        torch.tensor(half.ranks),
    ]
    ring = [aside.send(torch.tensor([rank]), (rank + 1) % size, tag=3), aside.send(torch.zeros(0), rank, tag=4)]
    source, payload = aside.take(3, wait=True)
    for request in [*ring, aside.receive(torch.empty(0), rank, tag=4)]:
        request.wait()
    world.barrier()
    assert aside.take(3) is None
    return [x.numpy() for x in [*found, torch.tensor([source]), payload.view(torch.int64)]]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_collectives_are_those_of_other_transports(ranks, size):
    for mine, theirs in zip(ranks(size, every_collective), run_ranks(size, every_collective), strict=True):
        for x, y in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_message_of_another_size_is_an_error(ranks):
    def program(transport):
        transport.send(torch.zeros(3), 1 - transport.rank)
        with pytest.raises(PeerError, match="sent 12 bytes, not 8"):
            transport.receive(torch.zeros(2), 1 - transport.rank).wait()
        transport.send(torch.zeros(3), 1 - transport.rank)
        return transport.receive(torch.zeros(9), 1 - transport.rank, exact=False).wait()

    assert ranks(2, program) == [12, 12]


def test_large_messages_cross(ranks):
    """Each side sends more than any buffer holds before it receives."""

    def program(transport):
        x = torch.full((4_000_000,), float(transport.rank))
        sent, out = transport.send(x, 1 - transport.rank), torch.empty_like(x)
        transport.receive(out, 1 - transport.rank).wait()
        sent.wait()
        return float(out.sum())

    assert ranks(2, program) == [4_000_000.0, 0.0]


def test_what_is_of_an_earlier_group_is_dropped(ranks):
    def program(transport):
        links = transport._links
        transport.send(torch.tensor([1.0]), 1 - transport.rank)
        transport.barrier()
        links.enter(2, links.members, {})
        with pytest.raises(LostRankError):
            transport.receive(torch.empty(1), 1 - transport.rank).wait()
        anew = SocketTransport(links)
        anew.send(torch.tensor([2.0]), 1 - transport.rank)
        out = torch.empty(1)
        anew.receive(out, 1 - transport.rank).wait()
        anew.barrier()
        return float(out)

    assert ranks(2, program) == [2.0, 2.0]


def test_who_does_not_know_the_key_is_not_let_in():
    ours, theirs = Links("0.0.x", "key"), Links("1.0.x", "another")
    try:
        assert not theirs.connect(ours.address)
        assert not ours.by_name
        assert not theirs.by_name
    finally:
        ours.close()
        theirs.close()


@pytest.fixture
def crossed():
    """Two that called each other at once, and have two connections."""
    pair = [Links(f"{name}.0.x", "key") for name in ("this", "that")]
    names = tuple(links.name for links in pair)
    try:
        for caller, called in (pair, pair[::-1]):
            assert caller.connect(called.address)
        for links in pair:
            wait_until(links, lambda links: len(links._open) == 2)
            links.enter(1, names, {})
        yield pair
    finally:
        for links in pair:
            links.close()


def wait_until(links, holds):
    with links.news:
        assert links.news.wait_for(lambda: holds(links), PATIENCE_S)


def test_the_end_of_one_of_two_connections_is_no_loss(crossed):
    """What the process had said on the other may not have been read yet."""
    this, that = crossed
    that.by_name[this.name].close()
    for links in crossed:
        wait_until(links, lambda links: len(links._open) == 1)
    assert not this.gone and not that.gone
    that.send(this.name, b"said", 1, 2, 1)
    assert this.arrived([(1, 1, that.name, 2)], wait=True)[1].tobytes() == b"said"
    that.close()
    wait_until(this, lambda links: links.broken)
    assert set(this.gone) == {that.name}


def test_nothing_reads_on_once_both_have_hung_up(crossed):
    for links in crossed:
        links.close()
    for thread in threading.enumerate():
        if thread.name in {f"from {links.name}" for links in crossed}:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
