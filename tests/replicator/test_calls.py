"""Ranks that call different things are told who called what, and none hangs.

HPCOPT_RANDOM_PROGRAMS=1000 makes as many random programs; 40 by default.
"""

import os
import random
import re

import pytest
import torch
from torch import nn

from hpcopt import Replicator
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import PeerError
from hpcopt.replicator.tree import leaves

PROGRAMS = int(os.environ.get("HPCOPT_RANDOM_PROGRAMS", "40"))
CALLS = 6  # of a program


def ends(size: int, program, **options) -> list[str]:
    """What every rank's run ended with: its error, or "done"."""

    def rank_main(t):
        replicator = Replicator(World(t), **options)
        try:
            replicator.run(lambda batch: program(replicator, t.rank, batch), range(2))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "done"

    return run_ranks(size, rank_main)


def test_who_called_what_and_where():
    def program(replicator, rank, batch):
        if rank == 1 and batch == 1:
            replicator.all_max({"a": torch.ones(3)})
        else:
            replicator.all_sum([torch.ones(2, requires_grad=True)])

    for end in ends(3, program):
        assert re.search(
            r"^PeerError: call 1 is not the same on all ranks: "
            r"ranks \[0, 2\] 'all_sum of \[\(2,\) float32 with gradient\] at test_calls.py:\d+'; "
            r"ranks \[1\] 'all_max of \{a: \(3,\) float32\} at test_calls.py:\d+'$",
            end,
        )


def test_a_rank_that_raises():
    def program(replicator, rank, batch):
        if rank == 2 and batch == 1:
            raise ValueError("boom")
        replicator.all_sum(1)

    *others, own = ends(3, program)
    assert own == "ValueError: boom"
    for end in others:
        assert "ranks [0, 1] 'all_sum of () int64 at" in end
        assert "ranks [2] 'left run after 1 steps with ValueError: boom" in end


def test_a_rank_with_fewer_batches():
    def rank_main(t):
        replicator = Replicator(World(t))
        with pytest.raises(PeerError, match=r"ranks \[1\] 'the end of run after 3 steps") as caught:
            replicator.run(lambda _: replicator.all_sum(1), range(3 if t.rank == 1 else 4))
        with pytest.raises(PeerError, match="call 3 is not the same"):  # nor does a later call hang
            replicator.all_sum(1)
        return str(caught.value)

    run_ranks(3, rank_main)


def test_errors_that_all_ranks_raise_are_their_own():
    def program(replicator, rank, batch):
        raise RuntimeError(f"of all{' but one' * (rank == 1)}")

    assert ends(3, program) == [f"RuntimeError: of all{' but one' * (rank == 1)}" for rank in range(3)]


def test_a_backward_pass_that_one_rank_leaves_out():
    def program(replicator, rank, batch):
        y = replicator.all_sum(torch.ones(2, requires_grad=True))
        if rank == 0:
            y.sum().backward()
        replicator.all_mean(2.0)

    for end in ends(2, program):
        assert "ranks [0] 'backward of sum of (2,) float32 at" in end and "ranks [1] 'all_mean of () float64" in end


def test_optimizers_that_step_in_another_order():
    def program(replicator, rank, batch):
        optimizers = [replicator.wrap_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(2))], 1.0)) for _ in range(2)]
        optimizers[rank == 1].step()

    for end in ends(3, program):
        assert "ranks [0, 2] 'step of optimizer 0 at" in end and "ranks [1] 'step of optimizer 1 at" in end


def test_optimizers_of_other_parameters():
    def program(replicator, rank, batch):
        replicator.wrap_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(2 + rank // 2))], 1.0))

    for end in ends(3, program):
        assert (
            "ranks [0, 1] 'wrap_optimizer 0 of [(2,) float32" in end and "ranks [2] 'wrap_optimizer 0 of [(3,)" in end
        )


def test_only_the_first_calls_are_compared_if_asked():
    sent_bytes = {}
    for check in (None, 3, 0):

        def program(t, check=check):
            replicator = Replicator(World(t), check=check)
            replicator.world.traffic.lap()
            for _ in range(10):
                replicator.all_sum(torch.ones(1, dtype=torch.float64))
            return replicator.world.traffic.sent_bytes

        sent_bytes[check] = run_ranks(2, program)[0]
    plain = 10 * 8
    assert sent_bytes[0] == plain  # loopback counts no bytes of an all-gather: see the cost under MPI
    assert sent_bytes[None] >= sent_bytes[3] >= plain


# Random programs.


def random_call(draw: random.Random) -> tuple:
    """A call with its arguments, as data."""
    shape = tuple(draw.choices([1, 2, 3], k=draw.randrange(3)))
    dtype = draw.choice(["float32", "float64", "int64"])
    tree = draw.choice(["leaf", "list", "dict"])
    name = draw.choice(["all_sum", "all_mean", "all_min", "all_max", "all_gather", "broadcast", "reduce", "map_gather"])
    if name == "map_gather":
        return name, draw.randrange(6)
    return (name, shape, dtype, tree, draw.randrange(2) if name in ("broadcast", "reduce") else None)


def changed(draw: random.Random, program: list[tuple]) -> list[tuple]:
    """The program of a rank that does not do as the others: a call more, less, other, elsewhere, or an end."""
    other, place = list(program), draw.randrange(CALLS)
    match draw.choice(["more", "less", "other", "swap", "raise", "return"]):
        case "more":
            other.insert(place, random_call(draw))
        case "less":
            del other[place]
        case "other":
            other[place] = random_call(draw)
        case "swap":
            other[place], other[place - 1] = other[place - 1], other[place]
        case "raise":
            other.insert(place, ("raise",))
        case "return":
            del other[place:]
    return other


def perform(replicator, call: tuple, rank: int) -> None:
    if call[0] == "raise":
        raise ValueError("a rank's own")
    if call[0] == "map_gather":
        results = replicator.map_gather(range(call[1]), lambda n: torch.ones(n))
        assert [len(x) for x in results] == list(range(call[1]))
        return
    name, shape, dtype, form, argument = call
    x = torch.full(shape, rank + 1, dtype=getattr(torch, dtype))
    tree = {"leaf": x, "list": [x, x], "dict": {"a": x, "b": [x]}}[form]
    result = getattr(replicator, name)(tree, *([] if argument is None else [argument]))
    size = replicator.num_replicas_in_sync
    total = size * (size + 1) / 2
    every = torch.arange(1, size + 1).view(size, *[1] * len(shape)) if name == "all_gather" else None
    expected = {
        "all_sum": total,
        "all_mean": total / size,
        "all_min": 1,
        "all_max": size,
        "all_gather": every,
        "broadcast": (argument or 0) + 1,
        "reduce": total * (rank == argument),
    }
    assert all(bool((leaf == expected[name]).all()) for leaf in leaves(result))


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_random_programs(seed):
    draw = random.Random(seed)
    size = draw.choice([2, 3, 4])
    common = [random_call(draw) for _ in range(CALLS)]
    programs = [common] * size
    if draw.random() < 0.8:
        strays = draw.sample(range(size), draw.randrange(1, size))
        programs = [changed(draw, common) if rank in strays else common for rank in range(size)]

    def program(replicator, rank, batch):
        for call in programs[rank] if batch == 1 else common:
            perform(replicator, call, rank)

    found = ends(size, program)
    if all(p == programs[0] for p in programs):
        assert found == (["ValueError: a rank's own"] * size if ("raise",) in programs[0] else ["done"] * size)
        return
    first = next(i for i in range(CALLS + 2) if len({str(p[i : i + 1]) for p in programs}) > 1)
    for rank, end in enumerate(found):
        if programs[rank][first : first + 1] == [("raise",)]:
            assert end == "ValueError: a rank's own"
            continue
        assert end.startswith(f"PeerError: call {CALLS + first} is not the same on all ranks: ")
        for theirs in programs:  # every rank's call is named
            name = theirs[first][0] if first < len(theirs) else "the end of run"
            assert {"raise": "left run after 1 steps with ValueError", "reduce": "reduce to"}.get(name, name) in end
