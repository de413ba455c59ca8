"""Connections of one process to every other of a job, over TCP, which outlive the loss of any of them.

A process is known by a name that is never used again. Frames of bytes go both ways; a thread a connection reads them,
so that a sender never waits for a receiver's program. A process that dies is known by its connections, which its kernel
closes at once; a host that is cut off by what it no longer acknowledges, after ``SILENCE_S``.

A group of processes exchanges the frames of one generation. What came of earlier ones is dropped, what comes of later
ones is kept until this process enters them. When a member is lost, or when one says so, the generation is broken: who
waits for a frame of it, or sends one, gets a ``LostRankError``.
"""

import errno
import json
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from hpcopt.errors import PeerError

SILENCE_S = 1.0  # that what was sent, or a sign of life, may go without an answer of the other host's kernel
GREETING_S = 5.0  # for the other side to say who it is
MOST_GREETING_BYTES = 4096
TOGETHER_BYTES = 1 << 16  # up to here, head and body of a frame go in one call
HEAD = struct.Struct("<IIiq")  # generation (0: a message about the group), channel, tag, bytes
UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)

Place = tuple[int, int, str, int]  # generation, channel, sender, tag
Address = tuple[str, int]


class LostRankError(PeerError):
    """A rank of the group is gone, or cannot be reached: the group must form anew."""


class Link:
    """One connection."""

    def __init__(self, connection: socket.socket, peer: str, address: Address) -> None:
        self.peer, self.address = peer, address
        self._connection, self._turn = connection, threading.Lock()

    def send(self, head: bytes, body: memoryview | bytes) -> None:
        """Hand a frame to the kernel; OSError if the other side is gone."""
        with self._turn:
            if len(body) <= TOGETHER_BYTES:
                self._connection.sendall(head + bytes(body))
            else:
                self._connection.sendall(head)
                self._connection.sendall(body)

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Links:
    """All connections of this process.

    Attributes:
        name: of this process.
        address: where others reach it.
        news: is notified of every frame, every greeting and every loss; held while the following are read.
        generation: in which this process takes part; 0 before the first.
        members: names in this generation, in the order of their ranks.
        broken: whether one of them is lost, or says that one is.
        by_name: the connections.
        gone: names that were connected and are not any more; and whether they may live, beyond reach.
        letters: messages about the group, each with its sender, oldest first.
        left: who has left which generation to form the next, and the newest round that each had been told of there.
        round: the newest that this process was told of (``hpcopt.comm.roll_call``).
        left_out: whose ballots do not count in which round, where that is to be as it was before; None: who is late.
        closed: this process has hung up.
    """

    def __init__(self, name: str, key: str) -> None:
        """Listen.

        Args:
            name: of this process.
            key: that all processes of the job know, and nobody else.
        """
        self.name, self._key = name, key
        self._door = socket.create_server(("", 0), backlog=1024)
        self.address: Address = (known_host(), self._door.getsockname()[1])
        self.news = threading.Condition()
        self.generation, self.members = 0, tuple[str, ...]()
        self.by_name: dict[str, Link] = {}
        self._open = set[Link]()  # two of a pair that called each other at once
        self.gone: dict[str, bool] = {}
        self.letters: deque[tuple[str, dict[str, Any]]] = deque()
        self.left: dict[str, tuple[int, int]] = {}
        self.round = 0
        self.left_out: Callable[[int], Collection[int]] | None = None
        self.broken = self.closed = False
        self._mail: defaultdict[Place, deque[np.ndarray]] = defaultdict(deque)
        threading.Thread(target=self._answer, name="door", daemon=True).start()

    def connect(self, address: Address) -> bool:
        """Get to know who listens at an address; whether there is somebody of this job."""
        try:
            connection = socket.create_connection(address, timeout=GREETING_S)
        except OSError:
            return False
        return self._greet(connection)

    def enter(self, generation: int, members: Sequence[str], addresses: Mapping[str, Address]) -> None:
        """Take part in a generation from now on. It may be broken already."""
        for name in members:
            if name not in self.by_name and name != self.name:
                self.connect(addresses[name])
        with self.news:
            self.generation, self.members, self.round = generation, tuple(members), 0
            self.news.notify_all()
            self.broken = not set(members) <= {self.name, *self.by_name}
            for place in [place for place in self._mail if place[0] < generation]:
                del self._mail[place]

    def send(self, to: str, body: memoryview | bytes, channel: int, tag: int, generation: int) -> None:
        """Send a frame.

        Raises:
            LostRankError: it is of a broken generation, or of one that is over, or the other is gone.
        """
        self._require(generation)
        if not self.post(to, body, channel, tag, generation):
            raise LostRankError(f"the process {to} is gone")

    def post(self, to: str, body: memoryview | bytes, channel: int, tag: int, generation: int) -> bool:
        """Send a frame, also of a broken generation; whether the other is there."""
        if (link := self.by_name.get(to)) is None:
            return False
        try:
            link.send(HEAD.pack(generation, channel, tag, len(body)), body)
        except OSError as error:
            self._lose(link, error)
            return False
        return True

    def arrived(self, places: Sequence[Place], *, wait: bool) -> tuple[Place, np.ndarray] | None:
        """The oldest frame of the first of some places that has one; None if there is none, unless it is to be waited
        for.

        Raises:
            LostRankError: there is none, and the generation is broken or over.
        """
        with self.news:
            while True:
                for place in places:
                    if mail := self._mail.get(place):
                        return place, mail.popleft()
                self._require(places[0][0])
                if not wait:
                    return None
                self.news.wait()

    def taken(self, places: Sequence[Place]) -> list[tuple[Place, np.ndarray]]:
        """All frames of some places, those of each in their order, also of a broken generation."""
        with self.news:
            return [(place, body) for place in places for body in self._mail.pop(place, ())]

    def deliver(self, place: Place, body: np.ndarray) -> None:
        """Put a frame where it belongs."""
        with self.news:
            if place[0] >= self.generation:
                self._mail[place].append(body)
                self.news.notify_all()

    def write(self, to: str, letter: Mapping[str, Any]) -> None:
        """Send a message about the group; nothing happens if the other is gone."""
        if (link := self.by_name.get(to)) is None:
            return
        body = json.dumps(letter).encode()
        try:
            link.send(HEAD.pack(0, 0, 0, len(body)), body)
        except OSError as error:
            self._lose(link, error)

    def break_off(self) -> None:
        """Break this generation, here and with all others."""
        with self.news:
            told, self.broken = self.broken, True
            others = [name for name in self.members if name != self.name]
            self.news.notify_all()
        if not told:
            for name in others:
                self.write(name, {"broken": self.generation})

    def leave(self) -> None:
        """Tell the others of this generation that this process takes no part in it any more."""
        for name in self.members:
            if name != self.name:
                self.write(name, {"left": self.generation, "round": self.round})

    def close(self) -> None:
        """Hang up on everybody; who still waits for a frame is told that the group is broken."""
        with self.news:
            self.closed = self.broken = True
            connections = list(self._open)
            self.news.notify_all()
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for link in connections:
            link.close()

    def _require(self, generation: int) -> None:
        if generation == self.generation and self.broken:
            lost = [name for name in self.members if name in self.gone]
            raise LostRankError(f"lost: {', '.join(lost) or 'another rank lost one'}")
        if generation < self.generation:
            raise LostRankError("the group has formed anew")

    def _answer(self) -> None:
        """Let in who comes."""
        while not self.closed:
            try:
                connection, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(connection,), name="greeting", daemon=True).start()

    def _greet(self, connection: socket.socket) -> bool:
        """Tell each other's names; then read what comes, in a thread."""
        try:
            connection.settimeout(GREETING_S)
            _watch(connection)
            mine = {"name": self.name, "key": self._key, "address": self.address, "generation": self.generation}
            _say(connection, mine)
            theirs = _hear(connection)
            if theirs["key"] != self._key or theirs["name"] == self.name:
                raise ValueError("not of this job")
            link = Link(connection, str(theirs["name"]), (str(theirs["address"][0]), int(theirs["address"][1])))
            connection.settimeout(None)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            connection.close()
            return False
        with self.news:
            if self.closed or link.peer in self.gone:
                connection.close()
                return False
            self._open.add(link)
            self.by_name.setdefault(link.peer, link)
            self.letters.append((link.peer, {"standing": theirs["generation"]}))
            self.news.notify_all()
        threading.Thread(target=self._read, args=(connection, link), name=f"from {link.peer}", daemon=True).start()
        return True

    def _read(self, connection: socket.socket, link: Link) -> None:
        head = bytearray(HEAD.size)
        try:
            while True:
                _fill(connection, memoryview(head))
                generation, channel, tag, size = HEAD.unpack(head)
                body = np.empty(size, np.uint8)
                _fill(connection, body.data)
                if generation:
                    self.deliver((generation, channel, link.peer, tag), body)
                else:
                    self._post(link.peer, json.loads(body.tobytes()))
        except (OSError, EOFError) as error:
            self._lose(link, error)

    def _post(self, sender: str, letter: dict[str, Any]) -> None:
        with self.news:
            if "broken" in letter:
                self.broken = self.broken or letter["broken"] == self.generation
            elif "left" in letter:
                self.left[sender] = letter["left"], letter["round"]
            else:
                self.letters.append((sender, letter))
            self.news.notify_all()

    def _lose(self, link: Link, error: BaseException) -> None:
        """Note that a process is gone; all who wait for one of its group are told. Of two connections the one that says
        so first does not count, if all it says is that the process has hung up: the other may have frames to read.
        """
        with self.news:
            self._open.discard(link)
            others = [other for other in self._open if other.peer == link.peer]
            if gone := not (others and isinstance(error, EOFError)):
                beyond_reach = isinstance(error, OSError) and error.errno in UNREACHABLE
                self.gone.setdefault(link.peer, beyond_reach)
                self.by_name.pop(link.peer, None)
                self._open.difference_update(others)
            elif self.by_name.get(link.peer) is link:
                self.by_name[link.peer] = others[0]
            self.news.notify_all()
        for each in (link, *others) if gone else (link,):
            each.close()
        if gone and link.peer in self.members and not self.closed:
            self.break_off()


def known_host() -> str:
    """This host's name, if it can be looked up here; else the address by which it reaches itself."""
    with suppress(OSError):
        socket.gethostbyname(name := socket.gethostname())
        return name
    return "127.0.0.1"


def _watch(connection: socket.socket) -> None:
    """Let the kernel notice that the other host no longer answers."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENCE_S))


def _say(connection: socket.socket, what: Mapping[str, Any]) -> None:
    body = json.dumps(what).encode()
    connection.sendall(len(body).to_bytes(4, "little") + body)


def _hear(connection: socket.socket) -> dict[str, Any]:
    size = bytearray(4)
    _fill(connection, memoryview(size))
    if (count := int.from_bytes(size, "little")) > MOST_GREETING_BYTES:
        raise ValueError("no greeting")
    body = bytearray(count)
    _fill(connection, memoryview(body))
    said = json.loads(body)
    if not isinstance(said, dict):
        raise ValueError("no greeting")
    return said


def _fill(connection: socket.socket, room: memoryview) -> None:
    while room:
        count = connection.recv_into(room)
        if not count:
            raise EOFError
        room = room[count:]
