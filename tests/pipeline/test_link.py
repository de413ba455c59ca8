"""Messages between stages: who waits for a neighbour says for which."""

import re
import time
from pathlib import Path

import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.stall import StallWatch
from hpcopt.comm.world import World
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
