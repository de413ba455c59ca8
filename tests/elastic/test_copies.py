"""Copies in the memory of other ranks, and what is left of them."""

import random

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.elastic.copies import Copies, RegroupSignal, buddies_of
from hpcopt.elastic.membership import Membership
from hpcopt.store.tree_bytes import from_bytes, to_bytes
from tests.store.test_tree import random_tree, same


@pytest.mark.parametrize("seed", range(8))
def test_trees_are_bytes_and_trees_again(seed):
    tree = random_tree(random.Random(seed), 3)
    assert same(from_bytes(to_bytes(tree)), tree)


def test_buddies_are_on_other_hosts_if_there_are_any():
    assert buddies_of(0, ["a"] * 3, 1) == [1]
    assert buddies_of(2, ["a"] * 3, 2) == [0, 1]
    assert buddies_of(0, ["a", "a", "b", "b"], 1) == [2]
    assert buddies_of(3, ["a", "a", "b", "b"], 3) == [0, 1, 2]
    assert buddies_of(0, ["a"], 2) == []


def taken(size: int, steps: list[int], buddies: int = 1) -> list[Copies]:
    """What each rank keeps, after some steps."""
    every = [Copies(5, buddies) for _ in range(size)]

    def program(transport):
        world = World(transport)
        every[world.rank].recover(world)
        for step in steps:
            own = {"mine": torch.full((world.rank + 1,), float(step))}
            every[world.rank].take(world, step, {"all": torch.tensor([step])}, own)

    run_ranks(size, program)
    return every


def recovered(group: list[Copies]) -> list[tuple[int | None, list]]:
    """What those who are left get of them: the step, what all have in common, each rank's own."""

    def program(transport):
        copies = group[transport.rank]
        if (step := copies.recover(World(transport))) is None:
            assert copies.steps() == []
            return None
        assert copies.steps() == [step]
        parts = copies.rank_parts(step, len(copies.parts(step)) - 1).under("mine")
        return step, copies.read_part(step, "shared")["all"].tolist(), [part.tolist() for part in parts]

    return run_ranks(len(group), program)


@pytest.mark.parametrize(
    ("buddies", "lost"), [(1, {1}), (1, {0}), (1, {0, 2}), (2, {0, 1}), (2, {2, 3}), (3, {0, 1, 2})]
)
def test_what_the_lost_had_is_with_others(buddies, lost):
    every = taken(4, [5, 10], buddies)
    left = [copies for rank, copies in enumerate(every) if rank not in lost]
    whole = (10, [10], [[10.0] * (rank + 1) for rank in range(4)])
    assert recovered(left) == [whole] * len(left)


def test_neighbours_are_lost_and_no_other_has_their_part():
    every = taken(4, [5, 10])
    assert recovered(every[2:]) == [None, None]


def test_newcomers_get_it_all():
    every = taken(2, [5])
    whole = (5, [5], [[5.0], [5.0, 5.0]])
    assert recovered([Copies(5), every[1], Copies(5)]) == [whole] * 3


def test_of_a_copy_that_was_not_finished_the_one_before_counts():
    every = taken(3, [5, 10])
    for copies in every[:2]:  # rank 1 was lost before its part had come, rank 2 before it sent any
        newest = max(copies._kept)
        copies._kept[newest].parts.pop(2, None)
        copies._kept[newest].parts.pop(1, None)
    assert recovered([every[0], every[1]]) == [(5, [5], [[5.0], [5.0] * 2, [5.0] * 3])] * 2


def test_later_groups_count_more_than_later_steps():
    """A copy that was lost stays lost, though one who has a part of it comes in again."""
    every = taken(2, [5, 10])
    lost = every[1]
    del every[0]._kept[max(every[0]._kept)]
    assert recovered([every[0]]) == [(5, [5], [[5.0], [5.0] * 2])]
    lost._kept[0, 10] = lost._kept.pop(max(lost._kept))
    assert recovered([every[0], lost])[0][0] == 5


def stood(group: list[Copies | None], step: int) -> list[list[int]]:
    """Some ranks of a group, by their numbers in it, stand after a step; give what is filled in when each writes what
    it has recorded: with how many others.
    """
    written = [[] for _ in group]
    for rank, copies in enumerate(group):
        if copies is not None:
            shared = {"all": torch.tensor([step]), "position": {"ranks": len(group)}}
            own = {"mine": torch.full((1,), 100.0 + rank)}
            copies.stand(rank, step, shared, own, lambda world, rank=rank: written[rank].append(world.size))
    return written


def test_who_stood_after_a_round_goes_on_there_without_what_the_lost_had():
    """Also one who comes in anew, in front of them."""
    every = taken(4, [5])
    written = stood([every[0], None, every[2], every[3]], 8)
    left = [Copies(5), every[2], every[0], every[3]]
    assert recovered(left) == [(8, [8], [[100.0], [102.0], [103.0]])] * 4
    assert written == [[3], [], [3], [3]]
    assert [copies.present for copies in left] == [[0, 2, 3]] * 4
    assert [copies.stood for copies in left] == [True] * 4
    assert left[0].read_part(8, "shared")["position"]["ranks"] == 3
    assert recovered(left[1:3])[0][0] == 8  # a copy like any other now


def test_who_did_not_come_to_the_end_of_the_round_goes_on_with_those_who_did():
    every = taken(3, [5])
    stood([every[0], None, None], 8)
    assert recovered([every[0], every[1]]) == [(8, [8], [[100.0]])] * 2


def test_a_copy_of_a_later_step_counts_more_than_where_somebody_stood():
    every = taken(2, [5, 10])
    stood([every[0], None], 8)
    assert recovered([every[0], every[1]])[0][0] == 10
    assert [copies.present for copies in every] == [None, None]


def test_a_repetition_drops_what_the_lost_had():
    plan = Membership([(0, 3), (10, 3)], [None, [0, 2]])
    every = [Copies(50, membership=plan) for _ in range(3)]

    def program(transport):
        world, copies = World(transport), every[transport.rank]
        copies.recover(world)
        assert copies.due(10) and copies.present is None
        shared = {"all": torch.tensor([10]), "position": {"ranks": 3}}
        with pytest.raises(RegroupSignal):
            copies.take(world, 10, shared, {"mine": torch.tensor([float(world.rank)])})

    run_ranks(3, program)
    assert recovered(every) == [(10, [10], [[0.0], [2.0]])] * 3
    assert every[1].present == [0, 2]
    assert not every[1].stood


def test_ranks_leave_their_group_for_newcomers_and_where_it_is_planned():
    def program(transport):
        world = World(transport)
        for copies in (
            Copies(5, newcomers=lambda: world.rank == 1),
            Copies(5, membership=Membership([(0, 3), (10, 2)])),
        ):
            raised = []
            for step in (5, 10):
                try:
                    copies.take(world, step, {}, {})
                except RegroupSignal:
                    raised.append(step)
            yield raised, sorted(copies._kept[max(copies._kept)].parts)

    assert run_ranks(3, lambda transport: list(program(transport))) == [
        [([5, 10], sorted({rank, (rank - 1) % 3})), ([10], [0, 1, 2])] for rank in range(3)
    ]


def test_membership_undoes_what_was_lost():
    assert Membership([(0, 4), (50, 3), (100, 4), (100, 3), (150, 3)]).starts == [(0, 4), (50, 3)]
    assert Membership([(0, 4), (90, 3), (60, 2)]).starts == [(0, 4), (60, 2)]
    plan = Membership([(0, 4), (50, 3), (100, 5)])
    assert [plan.ranks_after(step) for step in (0, 49, 50, 99, 100, 999)] == [4, 4, 3, 3, 5, 5]
    assert [step for step in range(200) if plan.changes_after(step)] == [50, 100]
    assert plan.most == 5
    plan = Membership([(0, 3), (10, 3), (20, 3), (20, 2)], [None, [0, 2], [1], None], {9: {1}})
    assert plan.starts == [(0, 3), (10, 3), (20, 2)]
    assert [plan.present_after(step) for step in (0, 10, 20)] == [None, [0, 2], None]
    assert [plan.absent_in(number) for number in (9, 10)] == [{1}, ()]
