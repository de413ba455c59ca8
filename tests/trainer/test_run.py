"""Durations as people and SLURM write them; lengths of runs; targets."""

import pytest
from pydantic import ValidationError

from hpcopt.trainer.run import RunConfig, StopAt, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90),
        (1.5, 1.5),
        ("90s", 90),
        ("1h30m", 5400),
        ("2d", 172800),
        ("30:00", 1800),
        ("1:30:00", 5400),
        ("1-02:00:01", 93601),
    ],
)
def test_durations(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1x", "h"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="not a duration"):
        seconds(text)


def test_length_is_steps_or_epochs():
    assert RunConfig(steps=7).total_steps(10) == 7
    assert RunConfig(epochs=1.5).total_steps(10) == 15
    assert RunConfig(epochs=0.01).total_steps(10) == 1
    assert RunConfig(epochs=2, steps=7).total_steps(10) == 7
    assert RunConfig(epochs=2, steps=70).total_steps(10) == 20
    with pytest.raises(ValidationError, match="steps or epochs"):
        RunConfig()


def test_losses_are_reached_from_above_and_scores_from_below():
    assert StopAt(metric="test_loss", value=0.5).reached({"test_loss": 0.4})
    assert not StopAt(metric="test_loss", value=0.5).reached({"test_loss": 0.6})
    assert StopAt(metric="test_accuracy", value=0.9).reached({"test_accuracy": 0.9})
    assert not StopAt(metric="test_accuracy", value=0.9).reached({"test_accuracy": 0.8})
