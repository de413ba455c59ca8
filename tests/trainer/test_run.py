"""Durations as people and SLURM write them; lengths of runs; targets."""

import math

import pytest
from pydantic import ValidationError

from hpcopt.trainer.run import RunConfig, RunDirectory, StopAt, seconds


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


@pytest.mark.parametrize("name", ["test_mae", "bits_per_char", "perplexity", "test_loss", "lossless_share"])
def test_which_scores_reach_a_target_is_the_workloads_word_and_not_their_names(name):
    for better, worse, good in (("lower", 0.82, 0.5), ("higher", 0.5, 0.82)):
        target = StopAt(metric=name, value=0.6)
        assert not target.reached({name: worse}, {name: better})
        assert target.reached({name: good}, {name: better})
        assert target.reached({name: 0.6}, {name: better})
        assert not target.reached({name: math.nan}, {name: better})
    assert not target.reached({}, {name: "lower"})


def test_a_target_may_say_itself_which_scores_are_better():
    target = StopAt(metric="score", value=0.6, better="lower")
    assert target.reached({"score": 0.5}, {"score": "higher"})
    assert not target.reached({"score": 0.7}, {"score": "higher"})


def test_no_fresh_start_takes_the_place_of_another(tmp_path):
    """However fast they follow each other: a run that was moved aside stays."""
    for number in range(4):
        with RunDirectory(tmp_path / "run") as directory:
            directory.take(fresh=True)
            directory.write_job(f"{number}")
    before = [folder / "job.toml" for folder in tmp_path.glob("run.before-*")]
    assert sorted(file.read_text() for file in before) == ["0", "1", "2"]
