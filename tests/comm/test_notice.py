"""A word reaches every rank without their meeting, and leaves nothing under way."""

import threading

import pytest

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.notice import Notice


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_nobody_sees_what_nobody_gave(size):
    def program(transport):
        notice = Notice(transport.duplicate())
        seen = notice.seen
        notice.close()
        return seen or notice.seen

    assert run_ranks(size, program) == [False] * size


@pytest.mark.parametrize("givers", [[0], [2], [0, 1, 2]])
def test_all_see_what_some_gave_while_they_work_at_their_own_pace(givers):
    given = threading.Semaphore(0)

    def program(transport):
        notice = Notice(transport.duplicate())
        if transport.rank in givers:
            notice.give()
            notice.give()  # a second time costs nothing
            for _ in range(transport.size):
                given.release()
        given.acquire()
        seen = notice.seen
        notice.close()
        return seen

    assert run_ranks(3, program) == [True] * 3


@pytest.mark.parallel([3])
def test_under_mpi():
    from mpi4py import MPI

    from hpcopt.comm.mpi import MpiTransport

    transport = MpiTransport(MPI.COMM_WORLD.Dup())
    for giver in (0, 2, None):
        notice = Notice(transport)
        if transport.rank == giver:
            notice.give()
        while giver is not None and not notice.seen:
            pass
        notice.close()
        assert notice.seen == (giver is not None)
    transport.communicator.Free()
