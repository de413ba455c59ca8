"""The exchange that docs/concepts/exchange.md makes works as it stands: its contract, and in a job."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.exchange import Exchange
from hpcopt.job import read_job
from tests.docs.pieces import importable

JOB = '[run]\nsteps = 1\n[workload]\ndata = "data/digits"\n'


@pytest.fixture
def blocks(tmp_path) -> Iterator[list[str]]:
    with importable("concepts/exchange.md", "An exchange of your own", "my_exchange", tmp_path) as pieces:
        yield pieces


def test_it_keeps_the_contract(blocks):
    namespace = {}
    exec(blocks[1], namespace)
    namespace["test_wide"]()


def test_a_job_names_it(blocks, tmp_path):
    (tmp_path / "job.toml").write_text(JOB + blocks[2])
    exchange = read_job(tmp_path / "job.toml").exchange
    assert type(exchange).__name__ == "WideConfig" and exchange.bucket_mb == 1


def test_it_rounds_once(blocks):
    from my_exchange import WideConfig

    values = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-6, 1e6])[:, None]

    def program(transport):
        p = nn.Parameter(torch.zeros(1000))
        exchange = Exchange(World(transport), [("p", p)], WideConfig())
        (p * values[transport.rank]).sum().backward()
        exchange.finish()
        return p.grad, exchange.metrics()["largest_gradient"]

    for gradient, largest in run_ranks(3, program):
        assert torch.equal(gradient, values.double().sum(0).float())
        assert largest == gradient.abs().max()
