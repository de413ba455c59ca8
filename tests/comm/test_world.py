"""What ranks know of each other, and how they fail together."""

import re
import sys
import types

import pytest
import torch

from hpcopt.comm.agreement import require_same_call
from hpcopt.comm.dense import SHORT_BYTES
from hpcopt.comm.loopback import LoopbackTransport, run_ranks
from hpcopt.comm.world import World, alone, connect
from hpcopt.errors import DataError, HpcoptError, LaunchError, PeerError


def test_ranks_of_one_host():
    worlds = run_ranks(3, World)
    assert [(w.local_rank, w.local_size, w.node, w.nodes) for w in worlds] == [(r, 3, 0, 1) for r in range(3)]


@pytest.mark.parametrize(("cores", "threads", "expected"), [(4, 1, 1.0), (3, 1, 4 / 3), (16, 2, 0.5), (5, 2, 1.6)])
def test_hosts_of_one_machine_share_its_cores(monkeypatch, cores, threads, expected):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    machines = ["big", "big", "small", "big", "small", "big"]  # four ranks on one machine, whatever their hosts
    assert run_ranks(6, lambda t: World(t).threads_per_core(threads, machines[t.rank])) == [expected] * 6


@pytest.mark.parametrize("n", [3, SHORT_BYTES // 4 + 5])
def test_all_reduce_of_short_and_long(n):
    for result in run_ranks(4, lambda t: World(t).all_reduce(torch.full((n,), float(t.rank)))):
        assert torch.equal(result, torch.full((n,), 6.0))


def test_texts_of_any_length():
    words = ["", "a", "zwölf" * 20]
    assert run_ranks(3, lambda t: World(t).gather_text(words[t.rank])) == [words] * 3


@pytest.mark.parametrize("point_to_point", [True, False])
def test_rank_0_gets_bytes_of_any_length(point_to_point, monkeypatch):
    """Over a transport without messages too."""
    monkeypatch.setattr(LoopbackTransport, "point_to_point", point_to_point)
    mine = [b"first", b"", b"x" * 1000]

    def program(t):
        world = World(t)
        world.traffic.lap()
        return world.gather_bytes(mine[t.rank]), world.traffic.sent_bytes

    results = run_ranks(3, program)
    assert [found for found, _ in results] == [mine, [], []]
    if point_to_point:
        assert [sent_bytes - 16 for _, sent_bytes in results] == [0, 0, 1000]


def test_a_world_of_one():
    world = alone()
    assert world.all_reduce(torch.ones(2)).tolist() == [1, 1]
    assert world.all_gather(torch.ones(2)).shape == (1, 2)
    assert world.gather_bytes(b"mine") == [b"mine"]


def test_one_ranks_error_is_everyones():
    def program(t):
        world = World(t)
        try:
            with world.together():
                if t.rank == 1:
                    raise DataError("shard 7 is gone")
        except HpcoptError as error:
            return type(error), str(error), error.exit_code, error.on_every_rank
        return None

    own, others = run_ranks(3, program)[1], run_ranks(3, program)[2]
    assert own == (DataError, "shard 7 is gone", 2, True)
    assert others[0] is HpcoptError
    assert others[1].startswith("rank 1 on ")
    assert others[1].endswith("shard 7 is gone")
    assert others[2:] == (2, True)


def test_no_error_passes():
    def program(t):
        with World(t).together():
            return t.rank

    assert run_ranks(3, program) == [0, 1, 2]


def test_different_bits_are_found():
    def program(t):
        x = torch.zeros(4)
        x[2] = -0.0 if t.rank == 2 else 0.0  # equal values, other bits
        World(t).require_same([torch.ones(3), x], "parameters")

    with pytest.raises(PeerError, match=r"ranks \[2\] differ"):
        run_ranks(3, program)


def test_in_debug_mode_different_calls_are_told_before_they_hang():
    """Ranks that call different operations, of different sizes, or dtypes, would hang or mix up bytes."""

    def size(world):
        world.all_reduce(torch.ones(3 if world.rank else 4))

    def dtype(world):
        world.all_reduce(torch.ones(3, dtype=torch.float64 if world.rank == 2 else torch.float32))

    def operation(world):
        world.all_reduce(torch.ones(2)) if world.rank < 2 else world.broadcast(torch.ones(2))

    def order(world):
        if world.rank == 1:
            world.barrier()
        world.all_reduce(torch.ones(2))

    for program, said in (
        (size, r"ranks \[0\] '.*all_reduce \(sum\) of \(4,\) torch.float32'; ranks \[1, 2\] '.* of \(3,\)"),
        (dtype, r"ranks \[0, 1\] '.*torch.float32'; ranks \[2\] '.*torch.float64'"),
        (operation, r"ranks \[0, 1\] '.*all_reduce.*'; ranks \[2\] '.*broadcast from rank 0"),
        (order, r"ranks \[0, 2\] '.*all_reduce.*'; ranks \[1\] '.*barrier'"),
    ):
        with pytest.raises(PeerError, match=f"about to run different collectives: {said}"):
            run_ranks(3, lambda t, program=program: program(World(t, debug=True)))


def test_calls_that_differ_late_in_a_long_description():
    def program(t):
        require_same_call(t, f"all_reduce of {'(3,) ' * 100}{t.rank // 2}")

    with pytest.raises(PeerError, match=r"ranks \[0, 1\] 'all_reduce .*0'; ranks \[2\] 'all_reduce .*1'"):
        run_ranks(3, program)


def test_groups_know_their_numbers_in_the_job():
    def program(t):
        half = World(t).split(t.rank % 2, -t.rank)
        return half.ranks, half.split(0).ranks

    assert run_ranks(5, program) == [([4, 2, 0],) * 2, ([3, 1],) * 2] * 2 + [([4, 2, 0],) * 2]


class _WithoutLibrary(types.ModuleType):
    """mpi4py from a wheel where no MPI is installed."""

    def __getattr__(self, name):
        raise RuntimeError("cannot load MPI library\nlibmpi.so: cannot open shared object file\nlibmpi.so.12: the same")


@pytest.mark.parametrize("mpi4py", [None, _WithoutLibrary("mpi4py")])
def test_without_an_mpi_it_says_how_to_get_one(monkeypatch, mpi4py):
    with monkeypatch.context() as patch, pytest.raises(LaunchError, match="MPI cannot be loaded") as error:
        patch.setitem(sys.modules, "mpi4py", mpi4py)
        connect()
    assert str(error.value).endswith("\n  pip install mpich")
    assert "libmpi.so" not in str(error.value)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_start_from_unlike_parameters_is_refused_or_made_alike(size):
    def program(t, broadcast):
        world = World(t)
        plain, last = torch.full((3,), float(t.rank)), torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
        parameters = [torch.nn.Parameter(plain), torch.nn.Parameter(last), torch.nn.Parameter(torch.zeros(0))]
        world.start_alike(parameters, broadcast)
        world.require_same(parameters, "parameters")
        return parameters[0].detach(), parameters[1].is_contiguous(memory_format=torch.channels_last)

    for found, kept in run_ranks(size, lambda t: program(t, True)):
        assert torch.equal(found, torch.zeros(3)) and kept
    if size > 1:
        others = list(range(1, size))
        with pytest.raises(PeerError, match=re.escape(f"at the start are not the same on all ranks: ranks {others}")):
            run_ranks(size, lambda t: program(t, False))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_what_the_world_sends_is_dense(size):
    """Nothing of it is compressed, so that a dense run is not told to send more than dense."""

    def program(transport):
        world = World(transport)
        world.traffic.lap()
        world.all_reduce(torch.ones(7, dtype=torch.float64))
        world.broadcast(torch.ones(3))
        world.gather_text("names")
        return world.traffic.lap()

    counts = run_ranks(size, program)
    assert all(count.dense_bytes == count.sent_bytes for count in counts)
    assert size == 1 or sum(count.sent_bytes for count in counts) > 0
