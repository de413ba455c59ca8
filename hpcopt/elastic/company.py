"""Who is in a run: processes find each other, agree on who is left when one is lost, and let others join.

A process is named ``slot.life.nonce``: its place with the launcher, how often that place was filled before, and chance.
The first group forms when all places are filled. From then on a group forms anew when it is broken, or when all its
ranks leave it after a step. Each process then tells the first member that it can still reach that it is ready; that
member waits for all it can reach itself, decides who is in, survivors first, and tells everybody. If it is lost
meanwhile, the next one takes its place. Nothing else decides: a process counts as lost when its connection is, or when
another one does not reach it and it is silent.

Of a group in two parts that cannot reach each other, the larger one goes on, or of equal ones that of the lowest rank;
a process whose kernel has closed its connections is dead, and counts on neither side.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from hpcopt.comm.links import Address, Links
from hpcopt.comm.sockets import SocketTransport
from hpcopt.comm.world import World
from hpcopt.errors import JobError, PeerError
from hpcopt.store.files import replace_text

LOOK_S = 0.05  # from one look around for others to the next, before this process is in
NOBODY_S = 60.0  # that a process which comes back looks for a run that goes on, and any for the run's key
TOLD_S = 5.0  # after it has met a member of a group, until a process has been told that it is one
OVER, KEY = "over", "key"

__all__ = ["Company", "ExpelledError"]


class ExpelledError(PeerError):
    """The others go on without this process."""


@dataclass(frozen=True)
class _Group:
    """What was decided.

    Attributes:
        generation: higher than any before.
        members: names, by rank.
        addresses: of all of them.
        aside: who waits for another decision.
    """

    generation: int
    members: list[str]
    addresses: dict[str, Address]
    aside: list[str]


class Company:
    """The processes of one run, as this one sees them.

    Attributes:
        links: to all others.
        over: exit code of the run, once it has ended.
        news: what a new group changed, for a person; "" of the first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        slot: int,
        life: int,
        slots: int,
        back_s: float = 0.0,
        ranks: Callable[[], int | None] = lambda: None,
        joined: Callable[[], None] = lambda: None,
    ) -> None:
        """Listen, and say where in a folder that all processes see.

        Args:
            folder: of this run alone.
            slot, slots: this process's place with the launcher, and their number.
            life: how often the place was filled before.
            back_s: seconds that the others wait for those who died to come back.
            ranks: how many are to be in the next group, all others aside; None: all there are.
            joined: called whenever this process is in a new group.
        """
        self._folder, self._slot, self._life, self._slots, self._ranks = folder, slot, life, slots, ranks
        self._back_s, self._joined = back_s, joined
        self.over: int | None = None
        self.news = ""
        folder.mkdir(parents=True, exist_ok=True)
        if life == 0 and slot == 0:
            (folder / OVER).unlink(missing_ok=True)
        self.links = Links(f"{slot}.{life}.{token_hex(4)}", _key_in(folder))
        self._group: _Group | None = None
        self._ready: dict[str, tuple[int, dict[str, bool]]] = {}
        self._ready_s: float | None = None  # when all were
        self._standing = 0  # the highest generation that somebody was in when we met
        self._met_s = 0.0  # when we met the first of them
        said = json.dumps({"name": self.links.name, "address": self.links.address})
        replace_text(folder / f"slot{slot:05}", said)

    @property
    def newcomers(self) -> list[str]:
        """Names of those who wait to be let in, by place."""
        waiting = [name for name in list(self.links.by_name) if name not in self.links.members]
        return sorted(waiting, key=_place)

    def form(self) -> World | None:
        """The world of the next group that this process is in; None if the run has ended. Collective, over all members.

        Raises:
            LostRankError: a member was lost at once: form again.
            ExpelledError: the others go on without this process, or it and those it reaches are the smaller part.
            PeerError: this process came back, and found nobody who goes on.
            JobError: another job is in the folder.
        """
        self.links.leave()
        while (group := self._agreed()) is not None:
            if self.links.name in group.members:
                self.news = _change(self.links.members, group.members)
                self.links.enter(group.generation, group.members, group.addresses)
                self._joined()
                return World(SocketTransport(self.links))
            if self.links.name not in group.aside:
                raise ExpelledError("the others have gone on without this rank")
            self.links.enter(0, (), {})
        return None

    def end(self, exit_code: int) -> None:
        """Tell everybody, also those who come back later, that the run has ended."""
        replace_text(self._folder / OVER, str(exit_code))
        for name in list(self.links.by_name):
            self.links.write(name, {"over": exit_code})

    def _agreed(self) -> _Group | None:
        told, since_s = None, time.monotonic()
        known = self._group.generation if self._group else 0
        while True:
            if self._group is None:
                self._look_around(since_s)
            with self.links.news:
                self._read()
                if self.over is not None:
                    return None
                if self._group is not None and self._group.generation > known:
                    return self._group
                leader = self._leader()
                if leader == self.links.name:
                    if (group := self._decided()) is not None:
                        return group
                elif leader not in (None, told):
                    told = leader
                    gone = {name: far for name, far in self.links.gone.items() if name in self.links.members}
                    self.links.write(str(leader), {"ready": self.links.generation, "gone": gone})
                if not self.links.letters:
                    self.links.news.wait(LOOK_S)

    def _leader(self) -> str | None:
        """Who decides, as far as this process knows; None: it has no say, and waits."""
        if members := self.links.members:
            return next(name for name in members if name not in self.links.gone)
        founds = self._slot == 0 and not self._standing and self._group is None
        return self.links.name if founds else None

    def _decided(self) -> _Group | None:
        """What this process decides, once all are ready of whom it waits; they have been told."""
        links, here = self.links, self.links.name
        if links.members:
            told = [links.gone, *(gone for _, gone in self._ready.values())]
            far = {name for gone in told for name, beyond in gone.items() if beyond}
            heard = {here, *self._ready}
            left = [name for name in links.members if name not in links.gone and (name in heard or name not in far)]
            if not heard.issuperset(left):
                return None
            self._require_majority(left, far)
            self._ready_s = self._ready_s or time.monotonic()
            died = [name for name in links.members if links.gone.get(name) is False]
            if len(self.newcomers) < len(died) and time.monotonic() - self._ready_s < self._back_s:
                return None
            candidates = self._at_one(left) + self.newcomers
        else:
            candidates = _one_a_slot([here, *self.newcomers])
            if len(candidates) < self._slots:
                return None
        wanted = self._ranks() or len(candidates)
        if len(candidates) < wanted:
            return None
        generation = 1 + max(links.generation, *(theirs for theirs, _ in self._ready.values()), 0)
        addresses = {name: link.address for name, link in links.by_name.items()} | {here: links.address}
        members, aside = candidates[:wanted], candidates[wanted:]
        group = _Group(generation, members, {name: addresses[name] for name in members if name in addresses}, aside)
        self._take(group)
        for name in {*candidates, *self._ready, *links.members} - {here}:
            links.write(name, {"group": asdict(group)})
        self._ready, self._ready_s = {}, None
        return group

    def _require_majority(self, left: list[str], far: set[str]) -> None:
        beyond = [name for name in self.links.members if name in far and name not in left]
        ours = (len(left), -min(map(self.links.members.index, left)))
        if beyond and ours < (len(beyond), -min(map(self.links.members.index, beyond))):
            raise ExpelledError(
                f"this rank reaches {len(left)} of those that may live, and {len(beyond)} are beyond its reach: the "
                "larger part goes on without it"
            )

    def _at_one(self, left: list[str]) -> list[str]:
        """Of members, lowest first, those who all reach each other."""
        gone = {name: {*self._ready[name][1]} if name in self._ready else {*self.links.gone} for name in left}
        chosen: list[str] = []
        for name in left:
            if not any(other in gone[name] or name in gone[other] for other in chosen):
                chosen.append(name)
        return chosen

    def _take(self, group: _Group) -> None:
        if self._group is None or group.generation > self._group.generation:
            self._group = group

    def _read(self) -> None:
        """Take in all messages about the group."""
        while self.links.letters:
            sender, letter = self.links.letters.popleft()
            if "ready" in letter:
                self._ready[sender] = letter["ready"], letter["gone"]
            elif "group" in letter:
                self._take(_Group(**letter["group"]))
            elif "over" in letter:
                self.over = int(letter["over"])
            elif "standing" in letter:
                self._met_s = self._met_s if self._standing else time.monotonic()
                self._standing = max(self._standing, letter["standing"])
        waited = self._standing and time.monotonic() - self._met_s > TOLD_S
        if waited and self._life == 0 and self._group is None:
            raise JobError(
                f"the run of {self._folder.name.strip('.')} goes on in another job: wait until it has ended, stop it, "
                "or name another --run-dir"
            )

    def _look_around(self, since_s: float) -> None:
        """Get to know who has said where they are."""
        if self._life and (over := _read_text(self._folder / OVER)):
            self.over = int(over)
            return
        for file in sorted(self._folder.glob("slot*")):
            try:
                said = json.loads(_read_text(file))
                name, (host, port) = str(said["name"]), said["address"]
            except (ValueError, KeyError, TypeError):
                continue  # it is being written
            if name != self.links.name and name not in self.links.by_name and name not in self.links.gone:
                self.links.connect((str(host), int(port)))
        found = self._standing and self.links.by_name
        if self._life and not found and time.monotonic() - since_s > NOBODY_S:
            raise PeerError(f"this rank came back, and found nobody who goes on in {NOBODY_S:.0f} s")


def _key_in(folder: Path) -> str:
    """What only those who may read the folder know."""
    path, until_s = folder / KEY, time.monotonic() + NOBODY_S
    try:
        with path.open("x", encoding="utf-8") as file:
            path.chmod(0o600)
            file.write(token_hex(16))
    except FileExistsError:
        pass
    while not (key := path.read_text(encoding="utf-8")):  # another process is writing it
        if time.monotonic() > until_s:
            raise JobError(f"{path} is empty, as a full disk or a crash leaves it: remove {folder}")
        time.sleep(LOOK_S)
    return key


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _change(before: Sequence[str], after: Sequence[str]) -> str:
    """Who of a group is gone, and who is new, by place; "" if there was none before, as far as this process knows."""
    lost = sorted(_place(name)[0] for name in set(before) - set(after))
    new = sorted(_place(name)[0] for name in set(after) - set(before))
    said = [
        f"place {', '.join(map(str, places))} {what}" for places, what in ((lost, "lost"), (new, "taken")) if places
    ]
    return f"{'; '.join(said) or 'a new start'}: {len(after)} ranks go on" if before else ""


def _place(name: str) -> tuple[int, int]:
    slot, life, _ = name.split(".")
    return int(slot), int(life)


def _one_a_slot(names: list[str]) -> list[str]:
    """The newest of each place."""
    newest = {_place(name)[0]: name for name in sorted(names, key=_place)}
    return [newest[slot] for slot in sorted(newest)]
