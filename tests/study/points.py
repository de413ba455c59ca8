"""Functions that the studies of these tests call, and that note each call."""

import os
import time
from pathlib import Path


def noted(point):
    """Leaves a line in point["log"] when it begins."""
    with Path(point["log"]).open("a", encoding="utf-8") as log:
        log.write(f"{point['n']} {point.get('seed', 0)}\n")
    return {"square": point["n"] ** 2, "sum": point["n"] + point.get("seed", 0)}


def slow(point):
    result = noted(point)
    time.sleep(point["sleep_s"])
    return result


def odd_fails(point):
    noted(point)
    if point["n"] % 2:
        raise ValueError(f"{point['n']} is odd")
    return {"half": point["n"] / 2}


def fails_once(point):
    """By what is on disk: a second try finds it."""
    mark = Path(f"{point['log']}.{point['n']}")
    noted(point)
    if not mark.exists():
        mark.touch()
        raise OSError("not yet")
    return {"n2": point["n"]}


def stops(point):
    """Sends its process the signal that a batch system would."""
    if point["n"] == 3:
        os.kill(os.getpid(), 10)
    return noted(point)


def plain(point):
    return {"value": point["a"]["b"] + 10 * point["c"]}


def text(_point):
    return {"name": "a text"}
