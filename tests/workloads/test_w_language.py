"""Drawings of strings are read back, frames are two columns side by side, and the workload keeps the contract."""

from itertools import product

import numpy as np
import pytest
import torch

from hpcopt.errors import DataError
from hpcopt.models import DeductronConfig, FrameMlpConfig, TanhRnnConfig
from hpcopt.shapes import Context
from hpcopt.testing.workload import check_workload
from hpcopt.workloads import WLanguageConfig
from hpcopt.workloads.drawn import TEST, TRAIN
from hpcopt.workloads.w_strings import BLANK, draw_string, frames_of, marked, read_drawing, stretched


def test_every_string_is_read_back_plain_and_stretched():
    draw = np.random.default_rng(0)
    for n in range(1, 8):
        for letters in product("XO", repeat=n):
            text = "".join(letters)
            heights, targets = draw_string(text)
            wide, marks = stretched(heights, targets, draw.integers(1, 6, len(heights)))
            assert read_drawing(heights) == read_drawing(wide) == text
            assert marked(targets) == marked(marks) == text
            assert len(marks) == len(wide) - 1
            at = marks.nonzero()[0]
            assert (wide[at] == np.where(marks[at, 0] == 1, 0, 2)).all()  # at the apex: 0 for X, 2 for O
            assert (wide[at] != wide[at - 1]).all()  # just reached


def test_the_paper_s_example():
    heights, targets = draw_string("XOOXXO")
    strokes = "21012" + "012101210" + "210121012" + "01210"
    assert heights.tolist() == [BLANK, *map(int, strokes), BLANK]
    assert targets.shape == (29, 2)


@pytest.mark.parametrize(
    "heights", [[3, 3], [2, 1, 0, 1, 2], [3, 2, 1, 0, 1, 3], [3, 0, 1, 2, 1, 0, 3, 0, 1, 2, 1, 0, 3]]
)
def test_what_is_no_drawing_is_refused(heights):
    with pytest.raises(DataError, match="no drawing of a string"):
        read_drawing(np.array(heights))


def test_frames_are_two_columns_and_blank_behind_the_end():
    long, short = draw_string("XX")[0], draw_string("O")[0]
    frames = frames_of([long, short])
    assert frames.shape == (2, len(long) - 1, 6)
    assert frames[0, 2].tolist() == [0, 1, 0, 1, 0, 0]  # heights 1 and 0
    assert not frames[1, len(short) - 1 :].any()
    assert frames_of([]).shape == (0, 1, 6)


def test_samples_are_drawn_by_seed_split_and_index():
    config = WLanguageConfig(lengths=(2, 3), test_lengths=(4, 4), stretch=2)
    one, same, other = (config.build(Context(run_seed=seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(one.sample(TRAIN, i)[0], same.sample(TRAIN, i)[0]) for i in range(20))
    assert any(not np.array_equal(one.sample(TRAIN, i)[0], other.sample(TRAIN, i)[0]) for i in range(20))
    texts = [read_drawing(one.sample(TRAIN, i)[0]) for i in range(200)]
    assert set(texts) == {"".join(letters) for n in (2, 3) for letters in product("XO", repeat=n)}
    assert {len(read_drawing(one.sample(TEST, i)[0])) for i in range(9)} == {4}
    plain = [np.array_equal(one.sample(TRAIN, i)[0], draw_string(texts[i])[0]) for i in range(20)]
    assert all(plain[::2]) and not all(plain[1::2])


def test_lengths_must_ascend():
    with pytest.raises(ValueError, match="there is none from 3 to 2"):
        WLanguageConfig(lengths=(3, 2))


@pytest.mark.parametrize("model", [DeductronConfig(), DeductronConfig(gates="hard"), TanhRnnConfig(), FrameMlpConfig()])
def test_the_contract(model):
    check_workload(WLanguageConfig(batch=7, train=14, test=10, model=model), ranks=(1, 3), steps=4)


def test_a_string_s_loss_is_that_of_the_string_alone():
    """What stands behind its end, in a batch with a longer one, counts for nothing."""
    workload = WLanguageConfig(lengths=(1, 8)).build(Context())
    together = workload.by_index().at(np.arange(6), 6)
    alone = [workload.by_index().at(np.array([i]), 1) for i in range(6)]
    assert len({batch.tensors["frames"].shape[1] for batch in alone}) > 1
    with torch.no_grad():
        losses = [float(workload.loss(workload.model, batch)) for batch in alone]
        assert float(workload.loss(workload.model, together)) == pytest.approx(np.mean(losses), rel=1e-5)
