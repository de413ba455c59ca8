"""From a bucket to a codec's inner loop a reader passes few functions, and no two files of one name."""

import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcopt import kernels
from hpcopt.comm.loopback import run_ranks
from hpcopt.compress import AdaComp, Half, Natural, Sign, TopK
from hpcopt.exchange import Exchange, TwoPhaseConfig, VoteConfig
from tests.comm.test_calibration import on_hosts

WALKS = [
    TwoPhaseConfig(),
    TwoPhaseConfig(codec=Sign()),
    TwoPhaseConfig(codec=AdaComp()),
    TwoPhaseConfig(codec=Natural()),
    TwoPhaseConfig(codec=TopK(fraction=0.1)),
    TwoPhaseConfig(codec=Half()),
    TwoPhaseConfig(by_nodes=True),
    VoteConfig(),
    VoteConfig(by_nodes=True),
]


def watched(loop, seen: list[list[str]]):
    """A loop that notes the files of the functions from a bucket's ``_reduce`` to it, its own at the end."""

    def call(*arguments):
        stack = traceback.extract_stack()[:-1]
        start = next((k for k, frame in enumerate(stack) if frame.name == "_reduce"), None)
        if start is not None:
            files = [frame.filename for frame in stack[start:]] + [loop.py_func.__code__.co_filename]
            seen.append([Path(file).name for file in files])
        return loop(*arguments)

    return call


@pytest.mark.parametrize("config", WALKS, ids=lambda c: f"{c.name}-{getattr(c, 'codec', c).name}")
def test_the_walk_is_short(config, monkeypatch):
    def program(transport):
        p = nn.Parameter(torch.zeros(3000))
        exchange = Exchange(on_hosts(transport, ["a", "a", "b", "b"]), [("p", p)], config)
        p.sum().backward()
        exchange.finish()

    run_ranks(4, program)  # compiles, which must come first
    seen = []
    for module in (getattr(kernels, name) for name in kernels.__all__):
        for key, loop in list(vars(module).items()):
            if getattr(loop, "py_func", None) is not None and loop.py_func.__module__ == module.__name__:
                monkeypatch.setattr(module, key, watched(loop, seen))
    run_ranks(4, program)
    assert seen
    for files in seen:
        passed = [file for file, before in zip(files, [None, *files], strict=False) if file != before]
        assert len(files) - 1 <= 8 and len(set(passed)) == len(passed), " ".join(files)
