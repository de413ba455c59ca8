"""Schedules take every micro-batch forward once and backward once, in an order that no neighbour waits for in vain."""

import pytest

from hpcopt.pipeline.schedule import Op, idle, kept, order

SIZES = [(stages, parts) for stages in (1, 2, 3, 4, 7) for parts in (1, 2, 4, 9)]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "parts"), SIZES)
def test_equal_stages_wait_for_the_share_that_the_papers_give(schedule, stages, parts):
    orders = [order(schedule, stage, stages, parts) for stage in range(stages)]
    for ops in orders:
        assert [op.part for op in ops if op.forward] == [op.part for op in ops if not op.forward] == [*range(parts)]
    assert idle(orders, [1.0] * stages) == pytest.approx([(stages - 1) / (parts + stages - 1)] * stages)


def test_one_forward_one_backward_keeps_few():
    assert [kept(order("1f1b", stage, 4, 9)) for stage in range(4)] == [4, 3, 2, 1]
    assert [kept(order("gpipe", stage, 4, 9)) for stage in range(4)] == [9] * 4


def test_the_orders_of_two_stages():
    def text(ops: list[Op]) -> str:
        return " ".join(f"{'f' if op.forward else 'b'}{op.part}" for op in ops)

    assert text(order("1f1b", 0, 2, 3)) == "f0 f1 b0 f2 b1 b2"
    assert text(order("1f1b", 1, 2, 3)) == "f0 b0 f1 b1 f2 b2"
    assert text(order("gpipe", 0, 2, 3)) == "f0 f1 f2 b0 b1 b2"


def test_a_slow_stage_makes_the_others_wait():
    orders = [order("1f1b", stage, 2, 4) for stage in range(2)]
    light, heavy = idle(orders, [1.0, 3.0])
    assert heavy == pytest.approx(3 / 39)  # (1 forward + 2 backward) of the light one, beside 4 times 9
    assert light == pytest.approx(1 - 12 / 39)
