"""In which order a stage takes micro-batches forward and backward, and for what share of the time it waits.

``gpipe`` (Huang et al. 2018, arXiv:1811.06965): all forward, then all backward. ``1f1b`` (Narayanan et al. 2019,
arXiv:1806.03377; with a flush at each update, 2021, arXiv:2104.04473): stage s of S takes S - 1 - s micro-batches ahead
and then one forward, one backward: as long as the other, and no more than S - s of them kept in place of all M. Either
goes backward in the order in which it went forward, so gradients add up in one order whatever the schedule and the
stages.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Schedule = Literal["gpipe", "1f1b"]


class Op(NamedTuple):
    """A micro-batch's way through a stage."""

    forward: bool
    part: int


def order(schedule: Schedule, stage: int, stages: int, parts: int) -> list[Op]:
    """What a stage does in a step, on so many micro-batches."""
    ahead = parts if schedule == "gpipe" else min(stages - 1 - stage, parts)
    ops = [Op(True, part) for part in range(ahead)]
    for part in range(parts):
        if ahead + part < parts:
            ops.append(Op(True, ahead + part))
        ops.append(Op(False, part))
    return ops


def kept(ops: Sequence[Op]) -> int:
    """The most micro-batches that are forward and not yet backward."""
    most = now = 0
    for op in ops:
        now += 1 if op.forward else -1
        most = max(most, now)
    return most


def idle(orders: Sequence[Sequence[Op]], costs: Sequence[float]) -> list[float]:
    """The share of a step for which each stage waits, if a micro-batch costs so much forward and twice that backward,
    and messages take no time. With equal costs it is (S - 1) / (M + S - 1).
    """
    done: dict[tuple[int, Op], float] = {}
    clock, place = [0.0] * len(orders), [0] * len(orders)
    while any(place[s] < len(ops) for s, ops in enumerate(orders)):
        for stage, ops in enumerate(orders):
            for op in ops[place[stage] :]:
                if (start := _ready(done, stage, op, len(orders))) is None:
                    break
                clock[stage] = max(clock[stage], start) + costs[stage] * (1 if op.forward else 2)
                done[stage, op] = clock[stage]
                place[stage] += 1
    busy = [3 * cost * len(ops) / 2 for cost, ops in zip(costs, orders, strict=True)]
    return [1 - own / max(clock) if max(clock) else 0.0 for own in busy]


def _ready(done: dict[tuple[int, Op], float], stage: int, op: Op, stages: int) -> float | None:
    """When what an operation needs is there; None: not yet known."""
    neighbour = stage - 1 if op.forward else stage + 1
    if 0 <= neighbour < stages:
        return done.get((neighbour, op))
    return 0.0 if op.forward else done.get((stage, Op(True, op.part)))
