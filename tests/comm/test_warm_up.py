"""What is compiled is compiled before the first step, by one rank of a host first."""

import os
import queue
import subprocess
import sys
from types import ModuleType

import numba
import pytest
import torch

from hpcopt.comm import warm_up
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.warm_up import compile_once
from hpcopt.comm.world import World
from hpcopt.errors import HpcoptError
from tests.launching import PATIENCE_S

EXCHANGES = """
import sys
import torch
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, RandomK, SharedTopK
from hpcopt.exchange import Exchange, RingConfig, TwoPhaseConfig, VoteConfig

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("hpcopt.kernels.")]
    loops = {id(loop): loop for module in modules for loop in vars(module).values() if hasattr(loop, "signatures")}
    return sum(len(loop.signatures) for loop in loops.values())

def program(t):
    world, model = World(t), torch.nn.Linear(300, 70)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    exchange = Exchange(world, model.named_parameters(), CONFIG)
    world.barrier()
    before = compiled()
    world.barrier()
    for _ in range(3):
        model.zero_grad()
        model(torch.randn(2, 300)).sum().backward()
        exchange.finish()
    world.barrier()
    return before, compiled()

for CONFIG in [
    TwoPhaseConfig(codec=QSGD(bits=4)),
    RingConfig(codec=RandomK(fraction=0.1)),
    RingConfig(codec=SharedTopK(fraction=0.1)),
    VoteConfig(),
    VoteConfig(by_nodes=True),
    VoteConfig(weights="learned"),
]:
    for size in (2, 3):
        for before, after in run_ranks(size, program):
            assert before == after, (CONFIG, size, before, after)
print(after)
"""


def test_no_step_compiles():
    """In a process of its own: in this one, other tests have compiled."""
    done = subprocess.run([sys.executable, "-c", EXCHANGES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


def test_one_rank_compiles_and_the_others_load_what_it_left():
    done = []
    run_ranks(4, lambda t: compile_once(world := World(t), lambda: done.append(world.rank)))
    assert done[0] == 0
    assert sorted(done) == [0, 1, 2, 3]


def test_what_cannot_be_compiled_is_said_by_all():
    def program(t):
        def fail():
            raise HpcoptError("no such loop")

        with pytest.raises(HpcoptError, match="no such loop"):
            compile_once(World(t), fail)

    run_ranks(3, program)


class Lines(queue.SimpleQueue[str]):
    """A stream whose lines are waited for; to read a file again and again would lose what is written between."""

    def write(self, text: str) -> None:
        if text != "\n":
            self.put(text)

    def flush(self) -> None:
        pass


def test_a_long_silence_is_explained_once(monkeypatch):
    """Loading is called loading, and compiling compiling."""
    monkeypatch.setattr(warm_up, "MOMENT_S", 0.001)
    monkeypatch.setattr(sys, "stderr", lines := Lines())
    fresh = ModuleType("hpcopt.kernels.fresh")
    monkeypatch.setitem(sys.modules, fresh.__name__, fresh)
    said = []

    def run():
        said.append(lines.get(timeout=PATIENCE_S))
        fresh.loop = numba.njit(lambda x: x + 1)
        assert fresh.loop(2) == 3
        said.append(lines.get(timeout=PATIENCE_S))

    run_ranks(2, lambda t: compile_once(World(t), run if t.rank == 0 else lambda: None))
    assert said == [warm_up.LOADING, warm_up.COMPILING]
    assert lines.empty()


def test_loops_from_the_cache_are_not_called_compiled(tmp_path):
    """Of two processes, the first compiles."""
    code = (
        "from hpcopt import kernels; from hpcopt.compress import RandomK; RandomK().warm(); print(kernels.compiled())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    counts = [int(subprocess.check_output([sys.executable, "-c", code], env=environment)) for _ in range(2)]
    assert counts[0] > 0 and counts[1] == 0


def test_a_rank_that_finds_all_compiled_says_nothing(capfd, monkeypatch):
    monkeypatch.setattr(warm_up, "MOMENT_S", 1e6)
    run_ranks(2, lambda t: compile_once(World(t), lambda: torch.ones(1)))
    assert capfd.readouterr().err == ""
