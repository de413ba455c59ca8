"""The codec that docs/concepts/codecs.md makes works as it stands: alone, in a job, and between ranks."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange, TwoPhaseConfig
from hpcopt.job import read_job

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "codecs.md"
JOB = '[run]\nsteps = 1\n[workload]\ndata = "data/digits"\n'


def gradient(step: int, rank: int) -> torch.Tensor:
    return torch.randn(500, generator=torch.Generator().manual_seed(step + 100 * rank))


@pytest.fixture
def blocks(tmp_path, monkeypatch) -> list[str]:
    """The section's pieces of Python and of a job; the first is importable."""
    section = PAGE.read_text().split("## A codec of your own\n")[1].split("\n## ")[0]
    python = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    job = re.sub(r"^    ", "", re.search(r"(?:^    .*\n)+", section.replace(python[0], ""), flags=re.M)[0], flags=re.M)
    (tmp_path / "my_codecs.py").write_text(python[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield [*python, job]
    sys.modules.pop("my_codecs", None)


def test_it_keeps_the_contract(blocks):
    namespace = {}
    exec(blocks[1], namespace)
    namespace["test_nearest"]()


def test_a_job_names_it(blocks, tmp_path):
    (tmp_path / "job.toml").write_text(JOB + blocks[2])
    codec = read_job(tmp_path / "job.toml").exchange.codec
    assert type(codec).__name__ == "Nearest" and codec.levels == 15


def test_ranks_exchange_with_it(blocks):
    from my_codecs import Nearest

    def program(transport):
        p = nn.Parameter(torch.zeros(500))
        exchange = Exchange(World(transport), [("p", p)], TwoPhaseConfig(codec=Nearest()))
        total = torch.zeros(500)
        for step in range(20):
            exchange.zero()
            (
                p * torch.randn(500, generator=torch.Generator().manual_seed(step + 100 * transport.rank))
            ).sum().backward()
            exchange.finish()
            total += p.grad
        return total

    exact = sum(gradient(step, rank) for step in range(20) for rank in range(3))
    results = run_ranks(3, program)
    assert all(torch.equal(result, results[0]) for result in results)
    assert (results[0] - exact).abs().max() < 0.1  # error feedback: what is off is one step's
