"""Ragged pieces arrive where they belong, summed in the same order everywhere."""

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.ragged import exchange, reduce_to_owners


@pytest.mark.parametrize("lengths", [[7], [0, 5], [3, 0, 4], [1, 2, 3, 4]])
def test_every_owner_has_the_sum_of_its_segment(lengths):
    size, n = len(lengths), sum(lengths)
    data = torch.randn(size, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = run_ranks(size, lambda t: reduce_to_owners(t, data[t.rank].clone(), lengths))
    torch.testing.assert_close(torch.cat(parts), data.sum(0), rtol=1e-14, atol=1e-14)


def test_wire_dtype_rounds_only_what_travels():
    data = torch.full((3, 6), 1 + 2.0**-12)
    parts = run_ranks(3, lambda t: reduce_to_owners(t, data[t.rank].clone(), [2, 2, 2], torch.bfloat16))
    assert torch.equal(torch.cat(parts), torch.full((6,), 3 + 2.0**-12))  # two of three summands lost their last bits


def test_exchange_matches_pairs_in_order():
    def program(transport):
        other = 1 - transport.rank
        got = [torch.zeros(2), torch.zeros(0), torch.zeros(1)]
        sent = [torch.full_like(x, 10.0 * transport.rank + i) for i, x in enumerate(got)]
        exchange(transport, [(x, other) for x in sent], [(x, other) for x in got])
        return torch.cat(got)

    assert [list(x) for x in run_ranks(2, program)] == [[10, 10, 12], [0, 0, 2]]
