"""Threads as ranks keep the transport's contract, and one rank's failure ends all."""

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.errors import PeerError


def test_groups_are_ordered_by_key_then_rank():
    def program(t):
        group = t.split(color=t.rank % 2, key=-t.rank)
        x = torch.tensor([float(t.rank)])
        group.all_reduce(x)
        return group.rank, group.size, x.item()

    assert run_ranks(5, program) == [(2, 3, 6.0), (1, 2, 4.0), (1, 3, 6.0), (0, 2, 4.0), (0, 3, 6.0)]


def test_all_to_all_transposes():
    def program(t):
        x = torch.arange(t.size) + 10 * t.rank
        out = torch.empty_like(x)
        t.all_to_all(x, out)
        return out.tolist()

    assert run_ranks(3, program) == [[0, 10, 20], [1, 11, 21], [2, 12, 22]]


@pytest.mark.parametrize("wait", [lambda t: t.barrier(), lambda t: t.receive(torch.empty(1), 1).wait()])
def test_a_failure_wakes_the_waiting_ranks(wait):
    def program(t):
        if t.rank == 1:
            raise ValueError("mine")
        wait(t)

    with pytest.raises(ValueError, match="mine"):
        run_ranks(4, program)


def test_a_failure_reaches_subgroups():
    def program(t):
        group = t.split(color=t.rank // 2, key=0)
        if t.rank == 3:
            raise ValueError("mine")
        group.barrier()
        group.barrier()
        t.barrier()

    with pytest.raises(ValueError, match="mine"):
        run_ranks(4, program)


def test_a_wrong_size_is_an_error_and_not_a_short_read():
    def program(t):
        if t.rank == 0:
            t.send(torch.zeros(3), 1)
        else:
            t.receive(torch.empty(4), 0).wait()

    with pytest.raises(PeerError, match="sent 3"):
        run_ranks(2, program)
