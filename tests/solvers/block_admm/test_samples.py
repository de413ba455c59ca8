"""Rows are kept by sample, whatever order the samples come in."""

import torch

from hpcopt.solvers.block_admm.samples import SampleTable

CPU = torch.device("cpu")


def test_against_a_dictionary():
    generator = torch.Generator().manual_seed(0)
    table, expected = SampleTable((2,), torch.float32, CPU), {}
    for _ in range(40):
        indices = torch.randperm(100, generator=generator)[:7]
        rows = torch.randn(7, 2, generator=generator)
        table.write(indices, rows)
        expected |= dict(zip(indices.tolist(), rows, strict=True))
        asked = torch.randperm(130, generator=generator)[:20]
        zeros = torch.zeros(2)
        assert torch.equal(table.read(asked), torch.stack([expected.get(i, zeros) for i in asked.tolist()]))
        assert table.known(asked).tolist() == [i in expected for i in asked.tolist()]


def test_empty():
    table = SampleTable((3,), torch.float64, CPU)
    assert table.read(torch.tensor([5, 0])).tolist() == [[0, 0, 0]] * 2
    assert table.read(torch.tensor([], dtype=torch.int64)).shape == (0, 3)
    table.write(torch.tensor([], dtype=torch.int64), torch.zeros(0, 3))
    assert table.known(torch.tensor([0])).tolist() == [False]


def test_states_add_up():
    one, two, both = (SampleTable((), torch.float32, CPU) for _ in range(3))
    one.write(torch.tensor([4, 1]), torch.tensor([4.0, 1.0]))
    two.write(torch.tensor([9]), torch.tensor([9.0]))
    for table in (one, two):
        both.add_state_dict(table.state_dict())
    assert both.read(torch.tensor([1, 4, 9, 2])).tolist() == [1.0, 4.0, 9.0, 0.0]
