"""Every sample once an epoch, the same global batches at any number of ranks, the same again after a restart."""

import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.workloads.order import TrainOrder, epoch_order, share


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_global_batches_do_not_depend_on_ranks(size):
    for step in range(12):
        whole = TrainOrder(100, 16, seed=3).indices(step, 0, 1)
        parts = [TrainOrder(100, 16, seed=3).indices(step, rank, size) for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_epoch_has_no_sample_twice():
    order = TrainOrder(100, 16, seed=0)
    seen = np.concatenate([order.indices(step, 0, 1) for step in range(order.steps_per_epoch)])
    assert len(set(seen.tolist())) == len(seen) == 96


def test_all_samples_in_every_batch_have_one_order():
    order = TrainOrder(50, 50, seed=0)
    assert all(order.indices(step, 0, 1).tolist() == list(range(50)) for step in range(3))


def test_epochs_differ_and_seeds_differ():
    order = TrainOrder(64, 8, seed=0)
    assert order.indices(0, 0, 1).tolist() != order.indices(1, 0, 1).tolist()
    assert order.indices(0, 0, 1).tolist() != TrainOrder(64, 8, seed=1).indices(0, 0, 1).tolist()


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_sample_stays_with_its_rank(size):
    home: dict[int, int] = {}
    order = TrainOrder(103, 16, seed=0)
    for step in range(10 * order.steps_per_epoch):
        for rank in range(size):
            for sample in order.indices(step, rank, size).tolist():
                assert home.setdefault(sample, rank) == rank
    assert set(home) == set(range(103))


def test_any_step_can_be_the_first():
    walked = TrainOrder(50, 7, seed=5)
    for step in range(20):
        np.testing.assert_array_equal(TrainOrder(50, 7, seed=5).indices(step, 1, 3), walked.indices(step, 1, 3))


def test_shares_differ_by_at_most_one():
    lengths = [len(share(np.arange(10), rank, 4)) for rank in range(4)]
    assert lengths == [3, 3, 2, 2]


def test_an_order_that_no_memory_holds_is_a_sentence():
    with pytest.raises(DataError, match="no memory for an order of 4611686018427387904 samples"):
        epoch_order(2**62, 4, seed=0, epoch=0)
