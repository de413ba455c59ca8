"""Messages between stages: who waits for a neighbour says for which."""

import re
import time
from functools import partial
from pathlib import Path

import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.stall import StallWatch
from hpcopt.comm.world import World
from hpcopt.compress import Half, Sign
from hpcopt.pipeline.link import UP, Link
from hpcopt.shapes.context import Context
from tests.launching import PATIENCE_S


def wait_for(file: Path) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not (file.exists() and "stall: " in file.read_text()):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_stall_report_names_the_neighbour_that_sends_nothing(tmp_path, capsys):
    def program(t):
        world = World(t)
        with StallWatch(tmp_path / "stalls", t.rank, ["n0", "n1"], 0.4) as world.watch:
            link = Link(Context(world=world), 1 - t.rank, None, 1)
            if t.rank == 0:
                wait_for(tmp_path / "stalls" / "report.txt")
                link.send(torch.ones(3), UP, 0)
                return link.flush()
            return link.receive((3,), torch.float32, UP)

    assert run_ranks(2, program)[1].tolist() == [1, 1, 1]
    report = capsys.readouterr().err
    waits = (
        r"stall: ranks 1 have waited \d\.\d s in rank 1's wait for auxiliaries up, rank 0 at the other end; missing: 0"
    )
    assert re.search(waits + r"\n  rank 0 on n0 is at\n", report)
    assert "went on: rank 1's wait" in report


def test_what_is_expected_comes_in_order_and_a_payload_is_one_message():
    """Posted ahead or not; with a codec, of as many bytes as it has."""
    x = torch.arange(6.0).view(2, 3)

    def program(t, codec):
        world = World(t)
        link = Link(Context(world=world), 1 - t.rank, codec, 8)
        if t.rank == 0:
            before = t.traffic.sent_bytes
            for number in range(3):
                link.send(x + number, UP, number)
            link.flush()
            return t.traffic.sent_bytes - before
        link.expect((2, 3), torch.float32, UP)
        link.expect((2, 3), torch.float32, UP)
        return [link.receive((2, 3), torch.float32, UP) for _ in range(3)]

    for codec, payload_bytes in ((None, 24), (Half(), 12)):
        sent_bytes, came = run_ranks(2, partial(program, codec=codec))
        assert sent_bytes == 3 * payload_bytes
        assert [(y - x).unique().tolist() for y in came] == [[0], [1], [2]]


def test_what_a_codec_cannot_carry_arrives_as_not_a_number():
    """The neighbour goes on and says so, in place of waiting for a message that never comes."""

    def program(t):
        link = Link(Context(world=World(t)), 1 - t.rank, Sign(), 8)
        if t.rank == 0:
            link.send(torch.tensor([1.0, torch.nan]), UP, 0)
            link.send(torch.tensor([]), UP, 1)
            return link.flush()
        return link.receive((2,), torch.float32, UP), link.receive((0,), torch.float32, UP)

    damaged, empty = run_ranks(2, program)[1]
    assert damaged.isnan().all()
    assert empty.shape == (0,)
