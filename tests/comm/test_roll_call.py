"""Rounds over those present, against the same in one process: here each rank is a thread with connections of its own,
and dies by closing them.
"""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from hpcopt.comm.links import LostRankError
from hpcopt.comm.roll_call import OUTCOME, RollCall, Round
from hpcopt.comm.sockets import SocketTransport
from tests.launching import PATIENCE_S
from tests.over_sockets import Group, groups, lose_patience, wait_until


def summed(number: int, ballots) -> np.ndarray:
    """An outcome that tells whose ballots it was made of, and of which round."""
    return np.array([number, *[int(ballot[0]) for ballot in ballots.values()]], np.uint8)


class Calls:
    """The roll calls of a group."""

    def __init__(self, group: Group, patience_s: float | None) -> None:
        self.group, self.links, self.die = group, group.links, group.die
        self.calls = [SocketTransport(link).roll_call(summed, patience_s) for link in group.links]

    def hold(self, number: int, *ranks: int) -> list[Future]:
        """Ranks' ballots are 10 and their number."""
        return [self.group.submit(self.calls[r].hold, number, np.array([10 + r], np.uint8)) for r in ranks]


@pytest.fixture
def group():
    with groups() as make:
        yield lambda size, patience_s=None: Calls(make(size), patience_s)


def told(futures: list[Future]) -> list[tuple[tuple[int, ...], bool, list[int]]]:
    rounds: list[Round] = [future.result(PATIENCE_S)[0] for future in futures]
    return [(held.present, held.last, held.outcome.tolist()) for held in rounds]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_all_are_there(group, size):
    ranks = group(size)
    for number in (1, 2, 7):
        every = (tuple(range(size)), False, [number, *range(10, 10 + size)])
        assert told(ranks.hold(number, *range(size))) == [every] * size


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_who_dies_before_the_ballot_does_not_count(group, dead):
    ranks = group(3)
    told(ranks.hold(1, 0, 1, 2))
    left = [rank for rank in range(3) if rank != dead]
    waiting = ranks.hold(2, *left)
    ranks.die(dead)
    assert told(waiting) == [(tuple(left), True, [2, *[10 + rank for rank in left]])] * 2
    assert [ranks.calls[rank].absent for rank in left] == [[dead]] * 2


def test_who_dies_after_the_ballot_counts(group):
    ranks = group(3)
    ranks.hold(1, 2)
    wait_until(ranks.calls[0], lambda: 2 in ranks.calls[0]._ballots.get(1, {}))
    ranks.die(2)
    wait_until(ranks.calls[0], lambda: "2.0.x" in ranks.links[0].gone)
    assert told(ranks.hold(1, 0, 1)) == [((0, 1, 2), True, [1, 10, 11, 12])] * 2


def test_all_but_one_die(group):
    ranks = group(4)
    waiting = ranks.hold(1, 3)
    for dead in range(3):
        ranks.die(dead)
    assert told(waiting) == [((3,), True, [1, 13])]


@pytest.mark.parametrize("knowing", [1, 2])
def test_the_teller_dies_when_one_rank_has_the_outcome(group, monkeypatch, knowing):
    """Which that one may have acted on: the others are told the same."""
    ranks = group(4)
    send = RollCall._send

    def send_to_one(call, rank, tag, body):
        if call is not ranks.calls[0] or tag != OUTCOME:
            send(call, rank, tag, body)
        elif rank == knowing:
            send(call, rank, tag, body)
            ranks.die(0)

    monkeypatch.setattr(RollCall, "_send", send_to_one)
    waiting = ranks.hold(1, 0, 1, 2, 3)[1:]
    assert told(waiting) == [((0, 1, 2, 3), False, [1, 10, 11, 12, 13])] * 3
    assert told(ranks.hold(2, 1, 2, 3)) == [((1, 2, 3), True, [2, 11, 12, 13])] * 3


def test_the_teller_dies_before_anybody_is_told(group, monkeypatch):
    """And its own ballot with it."""
    ranks = group(3)
    send = RollCall._send

    def die(call, rank, tag, body):
        if call is ranks.calls[0] and tag == OUTCOME:
            ranks.die(0)
        else:
            send(call, rank, tag, body)

    monkeypatch.setattr(RollCall, "_send", die)
    assert told(ranks.hold(1, 0, 1, 2)[1:]) == [((1, 2), True, [1, 11, 12])] * 2


def test_who_has_an_outcome_that_the_next_teller_lacks_tells_it_though_its_program_is_elsewhere(group, monkeypatch):
    ranks = group(3)
    send = RollCall._send

    def send_to_last(call, rank, tag, body):
        if call is not ranks.calls[0] or tag != OUTCOME or rank == 2:
            send(call, rank, tag, body)

    monkeypatch.setattr(RollCall, "_send", send_to_last)
    waiting = ranks.hold(1, 0, 1, 2)
    told(waiting[2:])
    ranks.die(0)
    assert told(waiting[1:2]) == [((0, 1, 2), False, [1, 10, 11, 12])]


@pytest.mark.parametrize("late", [[2], [0], [0, 1], [1, 2, 3]])
def test_who_is_late_is_left_out_and_told(group, late):
    """Rank 0 too, who is the teller: what counts ballots is not its program. The late ballots are dropped."""
    ranks = group(4, patience_s=PATIENCE_S)
    early = [rank for rank in range(4) if rank not in late]
    for number in (1, 2):
        first = (tuple(early), False, [number, *[10 + rank for rank in early]])
        waiting = ranks.hold(number, *early)
        lose_patience(ranks.calls[0], number, early)
        assert told(waiting) == [first] * len(early)
    for rank in late:
        wait_until(ranks.calls[rank], lambda call=ranks.calls[rank]: call._known == 2)
    for number in (1, 2):
        assert told(ranks.hold(number, *late)) == [
            (tuple(early), False, [number, *[10 + rank for rank in early]])
        ] * len(late)
        assert ranks.calls[late[0]].absent == late
        assert ranks.calls[late[0]].decided_after(number) == (number == 1)
    every = ((0, 1, 2, 3), False, [3, 10, 11, 12, 13])
    assert told(ranks.hold(3, 0, 1, 2, 3)) == [every] * 4


def test_a_round_by_plan_waits_for_all_and_leaves_out_those(group):
    ranks = group(3, patience_s=0.0)
    for links in ranks.links:
        links.left_out = lambda number: {1} if number == 2 else set()
    waiting = ranks.hold(1, 0, 2)
    assert told(waiting + ranks.hold(1, 1)) == [((0, 1, 2), False, [1, 10, 11, 12])] * 3
    assert told(ranks.hold(2, 0, 1, 2)) == [((0, 2), False, [2, 10, 12])] * 3


def test_a_round_is_the_last_where_any_rank_has_lost_another(group):
    """Which this teller still reaches."""
    ranks = group(3)
    ranks.links[1].break_off()
    wait_until(ranks.calls[0], lambda: ranks.links[0].broken)
    assert told(ranks.hold(1, 0, 1, 2)) == [((0, 1, 2), True, [1, 10, 11, 12])] * 3


def test_who_waits_for_one_that_forms_anew_does_so_too(group):
    """It has left after an earlier round, so that no ballot of it will come."""
    ranks = group(3)
    told(ranks.hold(1, 0, 1, 2))
    waiting = ranks.hold(2, 0, 1)
    ranks.links[2].leave()
    for future in waiting:
        with pytest.raises(LostRankError, match="left the group"):
            future.result(PATIENCE_S)


def test_who_leaves_after_a_round_takes_its_outcome_from_nobody(group, monkeypatch):
    """Rank 1 has left before rank 2 is told."""
    ranks = group(3)
    send, go = RollCall._send, threading.Event()

    def hesitate(call, rank, tag, body):
        if tag == OUTCOME and rank == 2:
            assert go.wait(PATIENCE_S)
        send(call, rank, tag, body)

    monkeypatch.setattr(RollCall, "_send", hesitate)
    waiting = ranks.hold(1, 0, 1, 2)
    told(waiting[1:2])
    ranks.links[1].leave()
    wait_until(ranks.calls[2], lambda: bool(ranks.links[2].left))
    go.set()
    assert told(waiting) == [((0, 1, 2), False, [1, 10, 11, 12])] * 3


def test_ballots_that_cannot_be_counted_are_an_error(group):
    ranks = group(2)
    ranks.calls[0]._count = lambda number, ballots: 1 // 0
    with pytest.raises(Exception, match="could not be counted"):
        ranks.hold(1, 0, 1)[0].result(PATIENCE_S)


def test_bytes_are_counted(group):
    ranks = group(3)
    sent = [future.result(PATIENCE_S)[1] for future in ranks.hold(1, 0, 1, 2)]
    assert sent[1:] == [8 + 1] * 2
    sent = [future.result(PATIENCE_S)[1] for future in ranks.hold(2, 0, 1, 2)]
    assert sent[0] == 2 * (8 * (2 + 3) + 4)  # the round, whether it is the last, who was present, and the outcome
