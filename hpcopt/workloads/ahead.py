"""Making things before they are asked for."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

AHEAD = 4  # items that are made before they are asked for

Item = TypeVar("Item")


@dataclass
class _Over:
    error: BaseException | None = None


def ahead(items: Iterator[Item], depth: int = AHEAD) -> Iterator[Item]:
    """Give the items in their order, while a thread makes the next ones. What the thread raises is raised here."""
    made: queue.Queue[Item | _Over] = queue.Queue(depth)
    unwanted = threading.Event()

    def put(item: Item | _Over) -> None:
        while not unwanted.is_set():
            try:
                made.put(item, timeout=0.2)
                break
            except queue.Full:
                continue

    def work() -> None:
        over = _Over()
        try:
            for item in items:
                put(item)
                if unwanted.is_set():
                    return
        except BaseException as error:  # for the reader to raise
            over.error = error
        put(over)

    threading.Thread(target=work, name="prefetch", daemon=True).start()
    try:
        while not isinstance(item := made.get(), _Over):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        unwanted.set()


def in_turn(parts: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """Give one item of each part in turn, until it is the turn of one that has ended."""
    while True:
        for part in parts:
            try:
                item = next(part)
            except StopIteration:
                return
            yield item
