"""Every row once an epoch, the same batches at any number of ranks, the same again from any step on."""

import itertools
import threading

import numpy as np
import pytest

from hpcopt.store.sentence_pairs import UNMASKED, SentencePairs, write_pairs
from hpcopt.workloads.ahead import ahead
from hpcopt.workloads.streams import Streams
from tests.launching import PATIENCE_S


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    first = 0
    for number, rows in enumerate([700, 900, 401]):
        ids = np.repeat(np.arange(first, first + rows)[:, None], 8, axis=1)
        arrays = {"input_ids": ids, "special_token_positions": ids[:, :3], "next_sentence_labels": ids[:, 0] % 2}
        assert arrays.keys() == UNMASKED.keys()
        write_pairs(folder / f"{number}.hdf5", arrays, {})
        first += rows
    return SentencePairs(folder)


def batches(pairs, batch, rank, size, start, count, seed=3):
    taken = itertools.islice(Streams(pairs, batch, seed).batches(rank, size, start), count)
    result = []
    for epoch, numbers, rows in taken:
        np.testing.assert_array_equal(rows["input_ids"][:, 0], numbers)
        result.append((epoch, numbers))
    return result


@pytest.mark.parametrize("batch", [16, 24, 37, 256])
def test_an_epoch_has_every_row_once(pairs, batch):
    steps = Streams(pairs, batch, 3).steps_per_epoch
    made = batches(pairs, batch, 0, 1, 0, 2 * steps)
    for epoch in (0, 1):
        seen = np.concatenate([numbers for e, numbers in made if e == epoch])
        assert len(set(seen.tolist())) == len(seen) == steps * batch
        assert len(seen) > 2001 - 2 * batch
    assert made[0][1].tolist() != made[steps][1].tolist()


@pytest.mark.parametrize(("batch", "size"), [(16, 2), (16, 3), (24, 5), (37, 4), (256, 3)])
def test_batches_do_not_depend_on_ranks(pairs, batch, size):
    whole = batches(pairs, batch, 0, 1, 0, 5)
    parts = [batches(pairs, batch, rank, size, 0, 5) for rank in range(size)]
    for step in range(5):
        together = np.concatenate([part[step][1] for part in parts])
        np.testing.assert_array_equal(together, whole[step][1])


@pytest.mark.parametrize("start", [1, 40, 124, 125, 130, 300])
def test_any_step_can_be_the_first(pairs, start):
    walked = batches(pairs, 16, 1, 3, 0, start + 3)
    for (e, n), (expected_e, expected_n) in zip(batches(pairs, 16, 1, 3, start, 3), walked[start:], strict=True):
        assert e == expected_e
        np.testing.assert_array_equal(n, expected_n)


def test_a_rank_reads_its_own_part(pairs):
    numbers = np.concatenate([n for _, n in batches(pairs, 64, 1, 4, 0, 31)])
    assert numbers.min() >= 500
    assert numbers.max() < 1000


def test_ahead_keeps_the_order_and_passes_errors_on():
    def items():
        yield from range(50)
        raise ValueError("spoilt")

    taken = ahead(items())
    assert [next(taken) for _ in range(50)] == list(range(50))
    with pytest.raises(ValueError, match="spoilt"):
        next(taken)
    assert list(ahead(iter([1, 2]))) == [1, 2]


def test_ahead_stops_when_nobody_wants_more():
    taken = ahead(itertools.count())
    next(taken)
    taken.close()
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(PATIENCE_S)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
