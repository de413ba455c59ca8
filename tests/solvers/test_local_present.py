"""Local steps of those who are present, against the same in one process."""

import threading

import pytest
import torch
from torch import nn

from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig, TwoPhaseConfig
from hpcopt.optim import SgdConfig
from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig
from tests.launching import PATIENCE_S
from tests.over_sockets import groups, lose_patience

EVERY, STEPS, RATE, SHARES = 3, 12, 0.1, (1.0, 2.0, 0.5)
OUTER = SgdConfig(lr=0.7, momentum=0.9, nesterov=True)


class Point(nn.Module):
    """x, which rank r's loss draws to r; a buffer counts the way."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(3))
        self.register_buffer("way", torch.zeros(2, dtype=torch.float64))


def serial(absent: dict[int, set[int]], broken: set[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The outer x and the mean of the ways in the end, when so many are absent from rounds, by their last step."""
    x, momentum, way = torch.zeros(3), torch.zeros(3), torch.zeros(2, dtype=torch.float64)
    for end in range(EVERY, STEPS + 1, EVERY):
        total, delta, ways = 0.0, torch.zeros(3), torch.zeros(2, dtype=torch.float64)
        for rank, share in enumerate(SHARES):
            own, mine = x.clone(), way.clone()
            for _ in range(EVERY):
                own -= RATE * (own - rank)
                mine += 1 + rank
            if rank not in absent.get(end, ()) and (rank, end) not in broken:
                total, delta, ways = (
                    total + EVERY * share,
                    delta + EVERY * share * (x - own),
                    ways + EVERY * share * mine,
                )
        mean = delta / total
        momentum = 0.9 * momentum + mean
        x = x - 0.7 * (mean + 0.9 * momentum)
        way = ways / total
    return x, way


def run(size: int, before=lambda *_: None, broken=frozenset(), clock=lambda: None, **settings):
    """Stated x and way of all ranks in the end."""

    def program(transport):
        model, world = Point(), World(transport)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.0)
        config = LocalStepsConfig(every=EVERY, outer=OUTER, **settings)
        local = LocalSteps(model, optimizer, config, world=world, exchange=RingConfig(), steps=STEPS)
        for step in range(1, STEPS + 1):
            before(world.rank, step, local.roll_call)
            if not local.decided():
                optimizer.zero_grad()
                ((model.x - world.rank).square().sum() / 2).backward()
                optimizer.step()
                model.way += 1 + world.rank
            if (world.rank, step) in broken:
                with torch.no_grad():
                    model.x[1] = torch.nan
            local.step(SHARES[world.rank])
        local.stand()
        shown = local.state_dict()["model"]
        return shown["x"].clone(), shown["way"].clone(), model.x.detach().clone()

    with groups() as make:
        group = make(size)
        ticking = group.submit(clock)
        found = group.run(program)
        ticking.result(PATIENCE_S)
        return found


def check(found, absent, broken=frozenset()) -> None:
    x, way = serial(absent, broken)
    for stated, stated_way, own in found:
        torch.testing.assert_close(stated, x)
        torch.testing.assert_close(stated_way, way)
        assert torch.equal(stated, found[0][0])
        assert torch.equal(own, stated)


def test_all_are_there():
    check(run(3), {})


@pytest.mark.parametrize("late", [0, 2])
@pytest.mark.parametrize("broken", [False, True])
def test_who_is_late_is_left_out_of_the_mean_and_lands_where_the_others_do(late, broken):
    """In its second step of the second round; another has NaN there."""
    calls, gone_on, there, again = {}, threading.Event(), threading.Barrier(4), threading.Barrier(3)

    def before(rank, step, roll_call):
        calls[rank] = roll_call
        if step == 5:
            there.wait(PATIENCE_S)
            if rank == late:
                assert gone_on.wait(PATIENCE_S)
        if step == 7:
            again.wait(PATIENCE_S)

    def clock():
        there.wait(PATIENCE_S)
        lose_patience(calls[0], 6, {0, 1, 2} - {late})
        gone_on.set()

    nan = {(1, 6)} if broken else set()
    found = run(3, before, nan, clock, patience_s=PATIENCE_S, not_finite="leave_out")
    check(found, {6: {late}}, nan)


def test_what_is_compressed_has_no_patience():
    def program(transport):
        model = Point()
        config = LocalStepsConfig(patience_s=1)
        with pytest.raises(JobError, match="plain sums"):
            LocalSteps(
                model,
                torch.optim.SGD(model.parameters(), lr=RATE),
                config,
                world=World(transport),
                exchange=TwoPhaseConfig(),
            )

    with groups() as make:
        make(1).run(program)


def test_parts_that_travel_in_turn_have_no_patience():
    with pytest.raises(ValueError, match="leave out fragments"):
        LocalStepsConfig(patience_s=1, fragments=2)
