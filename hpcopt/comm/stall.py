"""Which ranks are missing from a collective that does not end.

Every rank notes which collectives its threads are in. If one of them lasts too long, a thread of its own writes what it
knows into a folder that all ranks see; the others find it there and add where they are: in which collective, or with
which stack. The ranks that are not in the stalled collective are the missing ones, and the lowest rank that waits in it
says so on standard error.

Files are the only channel, so a report comes whatever the transport, and whatever keeps a rank: one that hangs in
Python still tells its stack, one that is stopped, dead or stuck in a C call that holds the interpreter is known by its
silence. As long as nothing stalls, nothing is written.
"""

import gc
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self, TextIO

LOOKS = 4  # in the time that a collective may take
SILENCE = 2  # times what a collective may take: who has not told of itself until then gives no sign of life
FRAMES = 6  # innermost ones of a stack
STALL_S = 60.0  # that a collective may take, unless something else is said
CLOSE = "close"  # a rank's last collective
_COLLECTING = threading.Lock()  # where ranks are threads, one at a time keeps the collector off


States = dict[int, dict[str, Any] | None]  # by rank; of one that gives no sign of life, None
Watch = Callable[[str, Sequence[int]], AbstractContextManager[None]]  # of a collective, and the ranks that are in it


def unwatched(_what: str, _ranks: Sequence[int]) -> AbstractContextManager[None]:
    """Nobody watches."""
    return nullcontext()


@dataclass
class _Stay:
    """One thread's stay in a collective."""

    what: str
    ranks: Sequence[int]
    since_s: float
    reported: bool = False

    @property
    def last(self) -> bool:
        """Whether the rank enters no other collective after it."""
        return self.what.endswith(f": {CLOSE}")


class StallWatch:
    """Watches one rank's collectives while it is entered.

    Give it to ``World.watch``; what is split from the world afterwards is watched as well.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        hosts: Sequence[str],
        after_s: float,
        out: TextIO | None = None,
        forsaken: Callable[[], None] | None = None,
    ) -> None:
        """Get ready; the folder is made when something stalls.

        Args:
            folder: the same on all ranks, and for this job alone.
            rank: this rank in the job.
            hosts: host name of every rank.
            after_s: seconds that a collective may take.
            out: where reports go; by default standard error.
            forsaken: called, after the report, when this rank is leaving while a rank that it waits for waits for it.
        """
        self._folder, self._rank, self._hosts, self._after_s, self._out = folder, rank, hosts, after_s, out
        self._forsaken = forsaken
        self._stays: dict[int, _Stay] = {}
        self._threads = {threading.get_ident(): None}  # in order; those whose stacks are told
        self._alarm, self._state = (folder / f"rank{rank:05}.{kind}.json" for kind in ("stalled", "state"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall watch", daemon=True)

    def __enter__(self) -> Self:
        self._withdraw()  # what an earlier start of the job left
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._withdraw()

    @contextmanager
    def __call__(self, what: str, ranks: Sequence[int]) -> Iterator[None]:
        """Note that this thread is in a collective; ``what`` is one text on all its ranks, and none but its own."""
        thread = threading.get_ident()
        self._threads[thread] = None
        outer = self._stays.get(thread)
        stay = self._stays[thread] = _Stay(what, ranks, time.monotonic())
        try:
            yield
        finally:
            if outer is None:
                del self._stays[thread]
            else:
                self._stays[thread] = outer
            if stay.reported:
                self._say(f"went on: {what}, after {time.monotonic() - stay.since_s:.1f} s")

    def _run(self) -> None:
        while not self._stop.wait(self._after_s / LOOKS):
            with suppress(OSError):  # a folder that cannot be written must not end a job
                self._look()

    def _look(self) -> None:
        now_s = time.monotonic()
        stays = list(self._stays.values())
        stalled = [stay for stay in stays if now_s - stay.since_s > self._after_s]
        if not stalled and not any(self._folder.glob("*.stalled.json")):
            self._withdraw()
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if not stalled:
            self._alarm.unlink(missing_ok=True)
        waits_for = [[stay.what, list(stay.ranks), stay.reported] for stay in stalled]
        _write(self._state, {"inside": [stay.what for stay in stays], "waits": waits_for, "stack": self._stacks()})
        if stalled:
            _write(self._alarm, {})
        for stay in stalled:
            states, waited_s = self._states(stay), now_s - stay.since_s
            told, late = stay.reported, waited_s > (SILENCE + 1) * self._after_s  # then another rank has told
            if not stay.reported:
                self._report(stay, waited_s, states)
            forsaken = (told or late) and self._leaving(stay) and self._is_waited_for(states, late)
            if forsaken and self._forsaken is not None:
                self._forsaken()

    def _states(self, stay: _Stay) -> States:
        """What the ranks of a stalled collective have told of themselves."""
        fresh_s = self._state.stat().st_mtime - self._after_s  # by the file system's clock; older ones are of the dead
        return {rank: _read(self._folder / f"rank{rank:05}.state.json", fresh_s) for rank in stay.ranks}

    def _leaving(self, stay: _Stay) -> bool:
        return stay.last or not threading.main_thread().is_alive()

    def _is_waited_for(self, states: States, late: bool) -> bool:
        """Whether a rank has waited too long in a collective that this one is not in, and has told, or could have."""
        inside = [stay.what for stay in self._stays.values()]
        waits = [wait for state in states.values() if state for wait in state["waits"]]
        return any(self._rank in ranks and what not in inside and (told or late) for what, ranks, told in waits)

    def _report(self, stay: _Stay, waited_s: float, states: States) -> None:
        """Say who is missing, once all ranks have told where they are, or have had time to."""
        if waited_s < SILENCE * self._after_s and not all(states.values()):
            return
        waiting = [rank for rank, state in states.items() if state and stay.what in state["inside"]]
        if min(waiting, default=self._rank) != self._rank:
            return
        stay.reported = True
        missing = {rank: state for rank, state in states.items() if rank not in waiting}
        lines = [
            f"stall: ranks {_ranges(waiting)} have waited {waited_s:.1f} s in {stay.what}; "
            f"missing: {_ranges(list(missing)) or 'none, so messages must be under way'}"
        ]
        for rank, state in missing.items():
            lines.append(f"  rank {rank} on {self._hosts[rank]} {_whereabouts(state)}")
        self._say("\n".join(lines))

    def _say(self, text: str) -> None:
        print(f"hpcopt: {text}", file=self._out or sys.stderr, flush=True)
        with suppress(OSError), (self._folder / "report.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")

    def _stacks(self) -> list[str]:
        """Innermost frames of this rank's threads, that of the training first."""
        frames = _frames_of_threads()
        stacks = [traceback.format_stack(frames[thread])[-FRAMES:] for thread in self._threads if thread in frames]
        return [line for stack in stacks for entry in stack for line in entry.splitlines()]

    def _withdraw(self) -> None:
        for file in (self._alarm, self._state):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _frames_of_threads() -> dict[int, FrameType]:
    """The innermost frame of each thread. Python holds a lock meanwhile that threads start and end with: a garbage
    collection would run finalizers under it, and one that lets another thread go on may wait for ever (CPython's
    issue 106883).
    """
    with _COLLECTING:
        collects = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if collects:
                gc.enable()


def _whereabouts(state: dict[str, Any] | None) -> str:
    """What a rank that is not in the collective does instead, as far as it says."""
    if state is None:
        return "gives no sign of life"
    if state["inside"]:
        return f"is in {' and '.join(state['inside'])}"
    return "\n".join(["is at", *(f"    {line}" for line in state["stack"])])


def _ranges(ranks: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _write(path: Path, content: dict[str, Any]) -> None:
    """As a whole, for readers on other hosts."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


def _read(path: Path, fresh_s: float) -> dict[str, Any] | None:
    """A file's content, unless it is older than that."""
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return state if path.stat().st_mtime >= fresh_s else None
    except (OSError, ValueError):
        return None
