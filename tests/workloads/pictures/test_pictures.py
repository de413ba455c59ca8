"""Pictures are drawn by the seed and the index, their values are right, and the workload keeps the contract."""

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hpcopt.errors import JobError
from hpcopt.models.exact_pictures import bars_and_stripes, shifting_bits
from hpcopt.models.graph_weighted import GraphWeightedConfig
from hpcopt.models.padded_mlp import PaddedMlpConfig
from hpcopt.shapes.context import Context
from hpcopt.testing.workload import check_workload
from hpcopt.workloads import PicturesConfig
from hpcopt.workloads.pictures.batch import PictureBatch
from hpcopt.workloads.pictures.languages import is_member, member, other
from hpcopt.workloads.pictures.workload import Pictures

COUNTS = {  # members of m rows and n columns
    "bars_and_stripes": lambda m, n: 2**m + 2**n - 2,
    "shifting_bits": lambda m, n: 2 ** (m + n - 1),
    "shifting_bits_zero": lambda m, n: 2**n,
    "shifting_bits_cyclic": lambda m, n: 2**n,
}
EXACT = {
    "bars_and_stripes": bars_and_stripes,
    "shifting_bits": shifting_bits,
    "shifting_bits_zero": lambda: shifting_bits("zero"),
    "shifting_bits_cyclic": lambda: shifting_bits("cyclic"),
}
ROWS = {"validation_sizes": (), "test_sizes": ((1, 3),)}
SMALL = {"batch": 11, "train": 40, "test": 12, "validation_sizes": ((4, 2),), "test_sizes": ((4, 3),)}


@torch.no_grad()
def scores(workload: Pictures, model: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    sums = sum(workload.score(model, batch)["sums"].double() for batch in workload.test_batches(0, 1))
    return workload.finish({"sums": sums})


@pytest.mark.parametrize("task", [*COUNTS, "random_values"])
def test_the_contract(task):
    check_workload(PicturesConfig(**SMALL, task=task), ranks=(1, 2, 3), steps=4)


def test_the_contract_with_a_network_of_one_size():
    check_workload(PicturesConfig(**SMALL, model=PaddedMlpConfig(hidden=(4,))), ranks=(1, 3), steps=4)


@pytest.mark.parametrize("language", COUNTS)
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (2, 4), (3, 3)])
def test_all_members_are_drawn_and_nothing_else(language, size):
    pixels = size[0] * size[1]
    pictures = (np.arange(2**pixels)[:, None] >> np.arange(pixels) & 1).reshape(-1, *size)
    assert is_member(language, pictures).sum() == COUNTS[language](*size)
    generator = np.random.default_rng(0)
    found = [member(language, size, generator) for _ in range(40 * COUNTS[language](*size))]
    assert is_member(language, np.stack(found)).all()
    assert len({picture.tobytes() for picture in found}) == COUNTS[language](*size)
    others = np.stack([other(language, size, near, generator) for near in (0, 1) for _ in range(100)])
    assert not is_member(language, others).any()


@pytest.mark.parametrize("language", COUNTS)
def test_near_ones_are_a_pixel_away_from_a_member(language):
    generator = np.random.default_rng(0)
    turns = np.eye(16, dtype=np.uint8).reshape(16, 4, 4)
    for _ in range(30):
        assert is_member(language, other(language, (4, 4), 1, generator) ^ turns).any()


@pytest.mark.parametrize("task", COUNTS)
def test_sizes_and_classes_are_balanced_and_the_exact_model_is_right_everywhere(task):
    """Its accuracy is 1 in every score, and that of a model that says no is one half."""
    config = PicturesConfig(**{**SMALL, "test": 24}, task=task)
    workload = config.build(Context(run_seed=3))
    drawn = [workload.picture(0, index) for index in range(24)]
    counts = Counter((picture.shape, value) for picture, value in drawn)
    assert counts == dict.fromkeys(itertools.product(config.sizes, (0.0, 1.0)), 2)
    for model, expected in ((EXACT[task](), 1.0), (lambda pictures: torch.zeros(len(pictures)), 0.5)):
        assert scores(workload, model) == dict.fromkeys(workload.scores, expected)
    names = ["familiar_accuracy", "validation_accuracy", "test_accuracy", "test_accuracy_4x3"]
    assert list(workload.scores) == names


def test_random_values_are_one_models_on_all_ranks_and_sizes():
    """Which is not the network that begins to learn them: that one is off by as much as chance has it."""
    workload = PicturesConfig(**SMALL, task="random_values").build(Context(run_seed=3))
    other_seed = PicturesConfig(**SMALL, task="random_values").build(Context(run_seed=4))
    batches = [next(each.train_batches(0, 1, 0)) for each in (workload, other_seed)]
    assert not any(torch.equal(a.values, b.values) for a, b in zip(*(b.groups for b in batches), strict=False))
    assert set(scores(workload, workload._truth).values()) == {0.0}
    assert set(scores(workload, lambda pictures: torch.zeros(len(pictures))).values()) == {1.0}
    assert min(scores(workload, workload.model).values()) > 0.1


def test_splits_are_drawn_apart():
    workload = PicturesConfig(sizes=((4, 4),), test_sizes=((5, 4),), batch=4).build(Context())
    some, others = ([workload.picture(split, i)[0].tobytes() for i in range(1, 80, 2)] for split in (0, 3))
    assert sum(a == b for a, b in zip(some, others, strict=True)) < 10  # of 40; there are 30 members of 4 by 4


def test_a_batch_has_one_group_a_size_and_is_cut_without_loss():
    sizes = [(2, 3), (3, 2), (2, 3), (2, 2), (3, 2), (2, 3), (2, 3)]
    batch = PictureBatch.of([(np.full(size, k, np.uint8), float(k)) for k, size in enumerate(sizes)], 14)
    assert [tuple(group.pictures.shape[1:]) for group in batch.groups] == sorted(set(sizes))
    assert (len(batch), batch.weight) == (7, 0.5)
    for parts in (1, 2, 3, 7, 9):
        cut = batch.split(parts)
        assert [len(part) for part in cut] == [7 * (k + 1) // parts - 7 * k // parts for k in range(parts)] or parts > 7
        groups = [group for part in cut for group in part.groups]
        assert all(len(part) for part in cut) and len(cut) == min(parts, 7)
        assert torch.cat([group.values for group in groups]).tolist() == [3, 0, 2, 5, 6, 1, 4]
        assert all((group.pictures == group.values[:, None, None]).all() for group in groups)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"batch": 9, "train": 8}, "batch = 9, but train = 8"),
        ({"sizes": ((2, 2), (1, 3))}, "sizes have 1 by 3: bars_and_stripes takes 2 rows and columns"),
        ({"sizes": ((2, 2), (5, 5))}, "pictures of 5 by 5 stand twice"),
        ({"test": 11}, "test = 11: .* take 12 at least"),
        ({"test_sizes": ((30, 30),)}, "model: a picture of 30 by 30 takes a state"),
        ({"model": GraphWeightedConfig(dimension=80)}, "model: .*dimension = 80"),
        (
            {"task": "random_values", "test_sizes": ((30, 30),), "model": PaddedMlpConfig()},
            'task = "random_values": a picture of 30 by 30',
        ),
        ({"task": "random_values", "dimension": 99, "sizes": ((1, 2),), **ROWS}, "tensors of 192119202 values"),
    ],
)
def test_settings_that_do_not_suit_each_other_are_refused(settings, complaint):
    with pytest.raises(JobError, match=complaint):
        PicturesConfig(**settings).build(Context())
