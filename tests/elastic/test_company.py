"""Processes agree on who is in; here each is a thread with connections of its own, and dies by closing them."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hpcopt.comm.links import LostRankError
from hpcopt.comm.world import World
from hpcopt.elastic.company import Company, ExpelledError
from hpcopt.errors import JobError, PeerError
from tests.launching import PATIENCE_S


class Crowd:
    """Companies of one run, by slot."""

    def __init__(self, folder: Path, slots: int, ranks: list[int] | None = None) -> None:
        self._folder, self._slots, self.ranks = folder, slots, ranks
        self.companies = [self.add(slot) for slot in range(slots)]
        self._threads = ThreadPoolExecutor(16)

    def add(self, slot: int, life: int = 0) -> Company:
        wanted = None if self.ranks is None else self.ranks[0]
        return Company(self._folder, slot=slot, life=life, slots=self._slots, ranks=lambda: wanted)

    def form(self, *companies: Company) -> list[World]:
        """The worlds of those who form a group, in their order."""
        return [future.result(PATIENCE_S) for future in self.forming(*companies)]

    def forming(self, *companies: Company) -> list[Future]:
        return [self._threads.submit(persistent, company) for company in companies]


def persistent(company: Company) -> World | None:
    """Form until nobody is lost on the way."""
    while True:
        try:
            return company.form()
        except LostRankError:
            continue


@pytest.fixture
def crowd(tmp_path):
    crowds = []

    def make(slots: int, **settings) -> Crowd:
        crowds.append(Crowd(tmp_path / f"{len(crowds)}", slots, **settings))
        return crowds[-1]

    yield make
    for one in crowds:
        for company in one.companies:
            company.links.close()


def everyones(worlds: list[World], call):
    """What a collective gives on all ranks."""
    with ThreadPoolExecutor(len(worlds)) as threads:
        return [future.result(PATIENCE_S) for future in [threads.submit(call, world) for world in worlds]]


def slots_in(world: World) -> list[int]:
    return [int(name.split(".")[0]) for name in world.transport._links.members]


def test_all_places_form_the_first_group(crowd):
    group = crowd(4)
    worlds = group.form(*group.companies)
    assert [world.rank for world in worlds] == [0, 1, 2, 3]
    sums = everyones(worlds, lambda world: world.sum([world.rank + 1.0]))
    assert sums == [[10.0]] * 4


@pytest.mark.parametrize("dead", [{1}, {0}, {0, 1}, {0, 2, 3}])
def test_survivors_form_the_next_in_their_order(crowd, dead):
    group = crowd(4)
    group.form(*group.companies)
    for slot in dead:
        group.companies[slot].links.close()
    left = [company for slot, company in enumerate(group.companies) if slot not in dead]
    worlds = group.form(*left)
    assert [slots_in(world) for world in worlds] == [sorted({0, 1, 2, 3} - dead)] * len(left)
    assert everyones(worlds, lambda world: world.sum([1.0])) == [[float(len(left))]] * len(left)


def test_who_waits_for_the_lost_is_woken(crowd):
    group = crowd(3)
    worlds = group.form(*group.companies)
    waiting = threading.Thread(target=group.companies[2].links.close)
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(worlds[0].transport.receive(torch.zeros(4), 1).wait)  # which nobody sends
        waiting.start()
        with pytest.raises(LostRankError):
            received.result(PATIENCE_S)
    with pytest.raises(LostRankError):
        worlds[1].transport.send(torch.zeros(4), 0)
        worlds[1].transport.receive(torch.zeros(4), 0).wait()


def test_who_waits_when_the_links_are_closed_is_woken(crowd):
    group = crowd(2)
    world = group.form(*group.companies)[0]
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(world.transport.receive(torch.zeros(4), 1).wait)  # which nobody sends
        group.companies[0].links.close()
        with pytest.raises(LostRankError):
            received.result(PATIENCE_S)


@pytest.mark.parametrize("told", [set(), {1}, {1, 3}])
def test_the_one_who_decides_dies_of_it(crowd, told):
    """Having told some what it decided."""
    group = crowd(4)
    group.form(*group.companies)
    group.companies[2].links.close()
    leader = group.companies[0].links
    write = leader.write

    def write_and_die(to, letter):
        for name in leader.members if "group" in letter else [to]:
            if "group" not in letter or int(name[0]) in told:
                write(name, letter)
        if "group" in letter:
            leader.close()

    leader.write = write_and_die
    forming = group.forming(group.companies[1], group.companies[3])
    with pytest.raises(LostRankError):
        group.companies[0].form()
    worlds = [future.result(PATIENCE_S) for future in forming]
    assert [slots_in(world) for world in worlds] == [[1, 3]] * 2


def test_those_who_come_back_are_let_in_last(crowd):
    group = crowd(3)
    group.form(*group.companies)
    group.companies[0].links.close()
    group.form(*group.companies[1:])
    back = group.add(0, life=1)
    group.companies.append(back)
    (joining,) = group.forming(back)
    while not all(company.newcomers for company in group.companies[1:3]):
        pass
    worlds = group.form(*group.companies[1:3])
    assert slots_in(worlds[0]) == [1, 2, 0]
    assert joining.result(PATIENCE_S).rank == 2


def test_groups_of_stated_sizes(crowd):
    group = crowd(4, ranks=[2])
    waiting = group.forming(*group.companies[2:])
    worlds = group.form(*group.companies[:2])
    assert [world.size for world in worlds] == [2, 2]
    for company in group.companies:
        company._ranks = lambda: 3
    worlds = group.form(*group.companies[:2])
    assert waiting[0].result(PATIENCE_S).rank == 2
    group.companies[0].end(0)
    assert waiting[1].result(PATIENCE_S) is None


def test_the_smaller_part_does_not_go_on(crowd):
    group = crowd(3)
    group.form(*group.companies)
    cut_off, *others = group.companies
    for company in others:
        for here, there in ((company.links, cut_off.links), (cut_off.links, company.links)):
            here.gone[there.name] = True  # may live, beyond reach
            del here.by_name[there.name]
        company.links.break_off()
    worlds = group.form(*others)
    assert [slots_in(world) for world in worlds] == [[1, 2]] * 2
    with pytest.raises(ExpelledError, match="larger part"):
        cut_off.form()
    cut_off.links.close()
    group.companies.append(back := group.add(0, life=1))
    (joining,) = group.forming(back)
    while not all(company.newcomers for company in others):
        pass
    group.form(*others)
    assert slots_in(joining.result(PATIENCE_S)) == [1, 2, 0]


def test_who_comes_back_and_finds_only_others_who_do_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcopt.elastic.company.NOBODY_S", 0.5)
    group = Crowd(tmp_path, 0)
    group.companies = [Company(tmp_path, slot=slot, life=1, slots=3) for slot in (1, 2)]
    for future in group.forming(*group.companies):
        with pytest.raises(PeerError, match="found nobody"):
            future.result(PATIENCE_S)
    for company in group.companies:
        company.links.close()


def test_who_is_silent_and_beyond_the_reach_of_another_is_not_waited_for(crowd):
    group = crowd(3)
    group.form(*group.companies)
    first, silent, other = group.companies
    other.links.gone[silent.links.name] = True
    other.links.break_off()
    worlds = group.form(first, other)
    assert [slots_in(world) for world in worlds] == [[0, 2]] * 2


def test_of_two_who_cannot_reach_each_other_one_is_left_out(crowd):
    group = crowd(3)
    group.form(*group.companies)
    one, other = group.companies[1:]
    one.links.gone[other.links.name] = other.links.gone[one.links.name] = True
    one.links.break_off()
    first, *futures = group.forming(*group.companies)
    members = slots_in(first.result(PATIENCE_S))
    assert members in ([0, 1], [0, 2])  # by who said first that it is ready
    out, second = futures if members == [0, 2] else reversed(futures)
    assert slots_in(second.result(PATIENCE_S)) == members
    with pytest.raises(ExpelledError):
        out.result(PATIENCE_S)


def test_a_key_that_nobody_has_written_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcopt.elastic.company.NOBODY_S", 0.1)
    (tmp_path / "key").touch()
    with pytest.raises(JobError, match="remove"):
        Company(tmp_path, slot=0, life=0, slots=1)


def test_who_meets_a_member_first_and_hears_of_the_group_later_is_in_it(crowd):
    group = crowd(3)
    last = group.companies.pop()
    first = group.companies[0].links
    write, told = first.write, threading.Event()

    def write_late(to, letter):
        if "group" in letter and to == last.links.name:
            threading.Thread(target=lambda: (told.wait(), write(to, letter))).start()
        else:
            write(to, letter)

    first.write = write_late
    group.companies.append(last)
    joining, *others = group.forming(last, *group.companies[:2])
    while last.links.name not in group.companies[1].links.members:
        pass
    with last.links.news:
        last.links.letters.append((first.name, {"standing": 1}))
    while last.links.letters:
        pass
    told.set()
    assert [slots_in(future.result(PATIENCE_S)) for future in (joining, *others)] == [[0, 1, 2]] * 3


def test_another_job_is_refused(crowd, monkeypatch):
    monkeypatch.setattr("hpcopt.elastic.company.TOLD_S", 0.2)
    group = crowd(2)
    group.form(*group.companies)
    group.companies.append(intruder := group.add(1))
    with pytest.raises(JobError, match="another job"):
        intruder.form()
