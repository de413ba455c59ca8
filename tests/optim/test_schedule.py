"""Schedules against their closed forms."""

import math
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from hpcopt.families import SCHEDULES
from hpcopt.optim.schedule import ScheduleConfig


def factors(steps: int, **settings) -> list[float]:
    schedule = TypeAdapter(Annotated[ScheduleConfig, SCHEDULES]).validate_python(settings)
    return [schedule.factor(step, steps) for step in range(steps)]


def test_constant():
    assert factors(5) == [1.0] * 5


def test_warmup_rises_to_one_and_never_starts_at_zero():
    assert factors(10, warmup=0.4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine():
    assert factors(4, name="cosine", final=0.2) == pytest.approx(
        [0.2 + 0.8 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    )


def test_linear_after_warmup():
    assert factors(10, name="linear", warmup=0.5)[5:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_polynomial():
    assert factors(8, name="polynomial", warmup=0.5, power=0.5)[3:] == pytest.approx(
        [1.0, 1.0, 0.75**0.5, 0.5**0.5, 0.25**0.5]
    )
    assert factors(6, name="polynomial", power=1.0) == pytest.approx(factors(6, name="linear"))


def test_step():
    assert factors(8, name="step", milestones=(0.5, 0.75), decay=0.1) == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)


def test_all_warmup():
    assert factors(4, warmup=1.0) == pytest.approx([0.25, 0.5, 0.75, 1.0])
