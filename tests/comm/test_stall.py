"""A collective that does not end: who is missing from it, and where that rank is instead."""

import gc
import io
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.stall import StallWatch
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange, RingConfig
from hpcopt.exchange.adversary import AdversaryConfig
from tests.launching import PATIENCE_S

AFTER_S = 0.5


class Said(list[io.StringIO]):
    """What each rank's watch says."""

    def wait_for(self, *reports: str) -> None:
        """Return when all of these reports are there, each by some rank."""
        end_s = time.monotonic() + PATIENCE_S
        while not all(any(re.search(report, text.getvalue()) for text in self) for report in reports):
            assert time.monotonic() < end_s, [text.getvalue() for text in self]
            time.sleep(0.01)


def reports(size: int, folder: Path, program, after_s: float = AFTER_S) -> list[str]:
    """What each rank's watch says of ``program(world, said)`` on ranks that are threads."""
    said = Said(io.StringIO() for _ in range(size))

    def watched(t):
        world = World(t)
        with StallWatch(folder, t.rank, [f"n{rank}" for rank in range(size)], after_s, said[t.rank]) as watch:
            world.watch = watch
            program(world, said)

    run_ranks(size, watched)
    return [text.getvalue() for text in said]


def be_late_where_nobody_would_look(world: World, rank: int, said: Said, *until: str) -> None:
    if world.rank == rank:
        said.wait_for(*until)


def test_a_rank_that_hangs_in_python_is_named_with_its_stack(tmp_path):
    def program(world, said):
        be_late_where_nobody_would_look(world, 1, said, "stall: .*missing: 1\n")
        world.all_reduce(torch.ones(5))

    first, *others = reports(4, tmp_path / "stalls", program)
    assert others == ["", "", ""]  # one speaks for all
    what = r"call \d+ of all ranks: all_reduce \(sum\) of \(5,\) torch.float32"
    assert re.search(rf"stall: ranks 0, 2-3 have waited \d\.\d s in {what}; missing: 1\n  rank 1 on n1 is at\n", first)
    assert "be_late_where_nobody_would_look" in first
    assert re.search(r"went on: call \d+ of all ranks: all_reduce", first)
    assert (tmp_path / "stalls" / "report.txt").read_text().count("Z stall: ") == 1
    assert [p.name for p in (tmp_path / "stalls").iterdir()] == ["report.txt"]  # nobody is left marked as stalled


def test_no_garbage_is_collected_while_threads_are_looked_at(tmp_path, monkeypatch):
    """A collection there can stop the process for ever."""
    frames, collects = sys._current_frames, []
    monkeypatch.setattr(sys, "_current_frames", lambda: collects.append(gc.isenabled()) or frames())

    def program(world, said):
        be_late_where_nobody_would_look(world, 1, said, "stall: .*missing: 1\n")
        world.barrier()

    reports(2, tmp_path, program)
    assert collects and not any(collects)
    assert gc.isenabled()


def test_the_lowest_rank_that_waits_speaks(tmp_path):
    def program(world, said):
        be_late_where_nobody_would_look(world, 0, said, "stall: .*missing: 0\n")
        world.barrier()

    said = reports(3, tmp_path, program)
    assert said[0] == said[2] == ""
    assert "ranks 1-2 have waited" in said[1] and "missing: 0\n" in said[1]


def test_ranks_in_another_collective_are_told_apart(tmp_path):
    """Rank 2 waits for a group of its own and rank 3, which is late: the others miss both, and see where 2 is."""

    def program(world, said):
        group = world.split(world.rank // 2)
        be_late_where_nobody_would_look(world, 3, said, "stall: .*missing: 2-3\n", "stall: .*missing: 3\n")
        if world.rank > 1:
            group.all_reduce(torch.ones(3))
        world.barrier()

    said = reports(4, tmp_path, program)
    whole = next(r for r in said[0].split("hpcopt: ") if r.startswith("stall"))
    assert re.search(r"stall: ranks 0-1 .* barrier; missing: 2-3", whole)
    assert re.search(r"rank 2 on n2 is in call \d+ of group 1 of all ranks, split \d+: all_reduce", whole)
    assert re.search(r"stall: ranks 2 have .* of group 1 of .*; missing: 3\n  rank 3 on n3 is at", said[2])


def test_a_bucket_is_named_with_its_operation_and_step(tmp_path, monkeypatch):
    models = [torch.nn.Linear(4, 4) for _ in range(2)]

    def program(world, said):
        late = AdversaryConfig(ranks=(1,), kind="delay", delay_s=1)
        clock = SimpleNamespace(sleep=lambda _: said.wait_for("stall: .*missing: 1\n"))
        monkeypatch.setattr("hpcopt.exchange.adversary.time", clock)
        exchange = Exchange(world, models[world.rank].named_parameters(), RingConfig(adversary=late), broadcast=True)
        exchange.finish()

    said = reports(2, tmp_path, program)
    assert "ranks 0 have waited" in said[0]
    assert "in ring of bucket 0, step 0: 20 x torch.float32; missing: 1" in said[0]
    assert "rank 1 on n1 is" in said[0]


def test_nothing_is_written_while_nothing_stalls(tmp_path):
    def program(world, said):
        for _ in range(20):
            world.barrier()
            world.watch._look()

    assert reports(3, tmp_path / "stalls", program, after_s=PATIENCE_S) == ["", "", ""]
    assert not (tmp_path / "stalls").exists()


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path, monkeypatch):
    (tmp_path / "stalls").write_text("a file")
    tried = threading.Event()

    def program(world, said):
        if world.rank == 1:
            assert tried.wait(PATIENCE_S)
        world.barrier()

    def mkdir(*arguments, **options):
        tried.set()
        return make(*arguments, **options)

    make = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert reports(2, tmp_path / "stalls", program) == ["", ""]


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    assert not any(thread.name == "stall watch" for thread in threading.enumerate())
