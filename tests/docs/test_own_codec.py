"""The codec that docs/concepts/codecs.md makes works as it stands: alone, in a job, and between ranks."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange, TwoPhaseConfig
from hpcopt.job import read_job
from tests.docs.pieces import importable

JOB = '[run]\nsteps = 1\n[workload]\ndata = "data/digits"\n'


def gradient(step: int, rank: int) -> torch.Tensor:
    return torch.randn(500, generator=torch.Generator().manual_seed(step + 100 * rank))


@pytest.fixture
def blocks(tmp_path) -> Iterator[list[str]]:
    with importable("concepts/codecs.md", "A codec of your own", "my_codecs", tmp_path) as pieces:
        yield pieces


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
