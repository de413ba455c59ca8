"""Checkpoints in memory: each rank keeps what all have in common, its own part, and those of its wards.

A rank's own part (shards of an optimizer, factors, what codecs owe, random states: its ``rank_state_dict``) is sent to
its buddies, the next ranks on other hosts, or on its own if there are no others. When ranks are lost, the newest copy
is taken of which every part is left; all ranks then get all parts, as from a checkpoint on disk that other ranks saved,
and the solver restores itself by the same ``load_state_dict``.

Cost of a copy: a pass over the state in memory, and own bytes times ``buddies`` on the wire. Memory: two copies, each
of the common state and ``1 + buddies`` parts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcopt.comm.ragged import exchange
from hpcopt.comm.world import World
from hpcopt.elastic.membership import Membership
from hpcopt.errors import CheckpointError
from hpcopt.store.checkpoint import SHARED, rank_part
from hpcopt.store.saved_parts import SavedParts
from hpcopt.store.tree_bytes import from_bytes, to_bytes

KEPT = 2  # newest copies: while one is made, the one before must still be whole

Number = tuple[int, int]  # of a copy: how many groups there were before, step


class RegroupSignal(Exception):  # noqa: N818 - nothing went wrong
    """Every rank leaves the group after this step, whose copy is whole, for others join or leave."""


@dataclass(frozen=True)
class Standing:
    """Where a rank stood after the last round of a group, as it is: nobody else has its own part.

    Attributes:
        rank: that it was.
        number: of the copy that this becomes.
        shared, own: trees; nobody changes them any more.
        write: writes what the rank has recorded since the last copy, with the others who stand there. Collective.
    """

    rank: int
    number: Number
    shared: Any
    own: Any
    write: Callable[[World], None]


@dataclass(frozen=True)
class Copy:
    """What a rank keeps of one step.

    Attributes:
        ranks: that made it.
        shared: what all have in common.
        parts: by rank; all of them only after ``Copies.recover``.
    """

    ranks: int
    shared: np.ndarray
    parts: dict[int, np.ndarray]


def buddies_of(rank: int, hosts: Sequence[str], count: int) -> list[int]:
    """Ranks that keep a copy of a rank's own part: the next ones on other hosts, then those on its own."""
    others = [(rank + hop) % len(hosts) for hop in range(1, len(hosts))]
    return sorted(others, key=lambda other: hosts[other] == hosts[rank])[:count]


def planned(shared: Any, own: Any, buddies: int, every: int) -> str:
    """What copies of a rank's state will take of its memory and of the wire, for a person; optimizers have no state
    before their first step.
    """
    common, mine = len(to_bytes(shared)), len(to_bytes(own))
    held = f"{KEPT} times {common:,} bytes that all have in common and {1 + buddies} times {mine:,} of a rank's own"
    return f"{held}, with what optimizers will keep on top; every {every} steps the own ones go to {buddies} others"


class Copies:
    """The newest ones of this rank. After ``recover`` they can be read as a run's ``Checkpoints`` can.

    Attributes:
        news: for a person, why the run goes on from them.
        present: ranks whose own parts there are, where the group before went on to the end of a round without the
            others; None: all of them.
        stood: that is so of this very run, and nothing was done in that group after the round's step.
    """

    folder = Path("memory")

    def __init__(
        self,
        every: int,
        buddies: int = 1,
        *,
        membership: Membership | None = None,
        newcomers: Callable[[], bool] = lambda: False,
        begun_s: float | None = None,
    ) -> None:
        """Begin with none.

        Args:
            every: steps from one to the next.
            buddies: other ranks that keep a rank's own part: so many may be lost at once.
            membership: how many ranks are to take which step; None: whoever is there.
            begun_s: when the job began, by the monotonic clock, whatever groups there were; None: nobody knows.
            newcomers: whether this process knows of others that wait to join after any copy.
        """
        self._every, self._buddies, self._membership, self._newcomers = every, buddies, membership, newcomers
        self.begun_s, self.news = begun_s, ""
        self._kept: dict[Number, Copy] = {}
        self._standing: Standing | None = None
        self.present: Sequence[int] | None = None
        self.stood = False
        self._group = 0
        self._recovered: tuple[int, Copy] | None = None

    @property
    def step(self) -> int | None:
        """Of the newest."""
        return max(self._kept)[1] if self._kept else None

    def due(self, step: int) -> bool:
        """Whether there is to be one of this step."""
        if step == self.step:
            return False
        planned = self._membership is not None and self._membership.changes_after(step)
        return not self._kept or step % self._every == 0 or planned

    def take(self, world: World, step: int, shared: Any, own: Any) -> None:
        """Keep a step. Collective: 16 bytes to every rank, and this rank's own part to its buddies.

        Args:
            world: the ranks.
            step: that was done.
            shared, own: trees, as in a checkpoint.

        Raises:
            RegroupSignal: on all ranks: others wait to join, or are to leave.
        """
        common, mine = to_bytes(shared), to_bytes(own)
        said = world.all_gather(torch.tensor([len(mine), self._newcomers()])).tolist()
        plan = self._membership
        changes = plan is not None and (plan.ranks_after(step) != world.size or plan.present_after(step) is not None)
        buddies = world.size if changes else self._buddies  # nobody knows here who leaves
        keepers = [buddies_of(rank, world.hosts, buddies) for rank in range(world.size)]
        wards = {rank: np.empty(said[rank][0], np.uint8) for rank, by in enumerate(keepers) if world.rank in by}
        outgoing = [(torch.from_numpy(mine), to) for to in keepers[world.rank]]
        exchange(world.transport, outgoing, [(torch.from_numpy(part), rank) for rank, part in wards.items()])
        self._kept[self._group, step] = Copy(world.size, common, {world.rank: mine, **wards})
        for old in sorted(self._kept)[:-KEPT]:
            del self._kept[old]
        if changes or (self._membership is None and any(waiting for _, waiting in said)):
            raise RegroupSignal

    def stand(self, rank: int, step: int, shared: Any, own: Any, write: Callable[[World], None]) -> None:
        """Keep where this rank stands after a round that all who are left have been in, and after which they leave."""
        self._standing = Standing(rank, (self._group, step), shared, own, write)

    def recover(self, world: World) -> int | None:
        """Give every rank the newest whole copy; the step that it is of, None if there is none. Collective, over a
        group that has just formed: each part once to every rank, and what all have in common to those who lack it.
        """
        mine = [[*number, copy.ranks, *copy.parts] for number, copy in self._kept.items()]
        standing, self._standing = self._standing, None
        stands = None if standing is None else [*standing.number, standing.rank]
        said = json.dumps({"group": self._group, "kept": mine, "stands": stands})
        everyones = [json.loads(text) for text in world.gather_text(said)]
        self._group = 1 + max(theirs["group"] for theirs in everyones)
        self._recovered, self.present, self.stood = None, None, False
        holders: dict[Number, list[int]] = {}  # of what is common
        parts: dict[Number, dict[int, int]] = {}  # and of each rank's own: the first rank that has it
        ranks: dict[Number, int] = {}
        for rank, theirs in enumerate(everyones):
            for group, step, count, *held in theirs["kept"]:
                number = group, step
                ranks[number] = count
                holders.setdefault(number, []).append(rank)
                for part in held:
                    parts.setdefault(number, {}).setdefault(part, rank)
        whole = [number for number in ranks if len(parts[number]) == ranks[number]]
        stood = [(rank, *theirs["stands"]) for rank, theirs in enumerate(everyones) if theirs["stands"]]
        last: Number = max(((group, step) for _, group, step, _ in stood), default=(-1, -1))
        if last > max(whole, default=(-1, -1)):
            there = sorted((was, rank) for rank, *number, was in stood if tuple(number) == last)
            self._recover_standing(world, last[1], there, standing)
            return last[1]
        if not whole:
            self._kept.clear()
            return None
        newest = max(whole)
        kept = self._kept.get(newest)
        shared = None if kept is None else kept.shared
        if len(holders[newest]) < world.size:
            shared = _spread(world, shared, holders[newest][0])
        own = {} if kept is None else kept.parts
        every = {part: _spread(world, own.get(part), root) for part, root in sorted(parts[newest].items())}
        assert shared is not None
        present = None if self._membership is None else self._membership.present_after(newest[1])
        if present is not None:
            shared, every = _of_ranks(from_bytes(shared), len(present)), {k: every[r] for k, r in enumerate(present)}
        self._take_over(newest[1], Copy(len(every), shared, every), present)
        return newest[1]

    def _recover_standing(
        self, world: World, step: int, there: Sequence[tuple[int, int]], standing: Standing | None
    ) -> None:
        """Make a copy of where those ranks stood, pairs of (rank then, rank now), and go on from it. Collective."""
        ranks = [rank for _, rank in there]
        among = world.split(int(world.rank not in ranks))
        mine = shared = None
        if world.rank in ranks and standing is not None:
            standing.write(among)
            shared, mine = _of_ranks(standing.shared, len(ranks)), to_bytes(standing.own)
        if len(ranks) < world.size:
            shared = _spread(world, shared, ranks[0])
        every = {part: _spread(world, mine, root) for part, root in enumerate(ranks)}
        assert shared is not None
        self._take_over(step, Copy(len(ranks), shared, every), [was for was, _ in there])
        self.stood = True

    def _take_over(self, step: int, copy: Copy, present: Sequence[int] | None) -> None:
        self._kept = {(self._group, step): copy}
        self._recovered, self.present = (step, copy), present

    def steps(self) -> list[int]:
        """The step that was recovered, if one was."""
        return [] if self._recovered is None else [self._recovered[0]]

    def parts(self, step: int) -> list[str]:
        """Names of its parts."""
        return [SHARED, *map(rank_part, range(self._of(step).ranks))]

    def read_part(self, step: int, name: str) -> Any:
        """A part as a tree, of its own."""
        copy = self._of(step)
        return from_bytes(copy.shared if name == SHARED else copy.parts[int(name.removeprefix("rank"))])

    def rank_parts(self, step: int, ranks: int) -> SavedParts:
        """What each rank had alone."""
        return SavedParts.once(lambda rank: self.read_part(step, rank_part(rank)), ranks)

    def path(self, step: int) -> Path:
        """A name for messages."""
        return self.folder / f"step_{step:08d}"

    def _of(self, step: int) -> Copy:
        if self._recovered is None or self._recovered[0] != step:
            raise CheckpointError(f"there is no copy of step {step} in memory")
        return self._recovered[1]


def _of_ranks(shared: Any, ranks: int) -> np.ndarray:
    """What all have in common, as so many ranks would have saved it."""
    return to_bytes({**shared, "position": {**shared["position"], "ranks": ranks}})


def _spread(world: World, values: np.ndarray | None, root: int) -> np.ndarray:
    """Rank root's bytes on all ranks. Collective."""
    (count,) = world.broadcast_integers([0 if values is None else len(values)], root)
    mine = values if world.rank == root and values is not None else np.empty(count, np.uint8)
    world.broadcast(torch.from_numpy(mine), root)
    return mine
