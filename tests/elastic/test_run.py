"""Ranks of a run are killed, and it goes on: what it has recorded, and the same again from its membership."""

import argparse

import numpy as np
import pytest

from hpcopt.comm.world import alone
from hpcopt.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_REQUEUE
from hpcopt.job import read_job
from hpcopt.trainer.signals import StopSignals
from hpcopt.training import train
from tests.elastic.runs import Runs
from tests.launching import PATIENCE_S

SHARDS = "solver.shard_optimizer=true"  # what a rank holds, no other does
OWED = 'exchange={name="two_phase", codec={name="topk", fraction=0.1}}'


@pytest.fixture
def runs(tmp_path, digits) -> Runs:
    return Runs(tmp_path, digits / "digits")


def test_ranks_die_and_their_places_are_taken(runs):
    """One; rank 0, who writes the metrics; one while the others form anew; one is stopped. The bits are those of a run
    in which nobody dies.
    """
    deaths = [(2, 10, "rank"), (0, 20, "rank"), (1, "build", "rank"), (2, 30, "stop")]
    assert runs.start("shards", 3, deaths, SHARDS, f"run.rejoin_s={PATIENCE_S}") == [EXIT_DONE] * 3
    assert runs.dead() == len(deaths)
    assert runs.membership("shards").starts == [(0, 3)]
    runs.replay("shards", 3, SHARDS)


def test_ranks_die_and_others_join(runs):
    deaths = [(0, 20, "rank"), (1, 20, "rank")]
    assert runs.start("joined", 3, deaths, SHARDS, "run.buddies=2", "run.rejoin_s=0", "run.steps=80") == [EXIT_DONE] * 3
    starts = runs.membership("joined").starts
    assert starts[:2] == [(0, 3), (16, 1)]
    assert starts[-1][1] == 3
    runs.replay("joined", 3, SHARDS, "run.steps=80")


def test_hosts_are_lost_for_good(runs):
    """Two at once, neighbours, and what codecs owe with them."""
    deaths = [(1, 12, "host"), (2, 12, "host")]
    codes = runs.start("owed", 4, deaths, OWED, "run.buddies=2", "run.rejoin_s=0")
    assert codes == [EXIT_DONE, -9, -9, EXIT_DONE]
    assert runs.membership("owed").starts == [(0, 4), (8, 2)]
    assert "place 1, 2 lost: 2 ranks go on" in runs.log("owed")
    runs.replay("owed", 4, OWED, "run.buddies=2")


def test_all_copies_of_a_part_are_lost(runs, tmp_path):
    """The newest checkpoint is left, also to a run that was to begin anew: it has begun."""
    settings = (SHARDS, "run.rejoin_s=0", "run.checkpoint_every=10", "run.checkpoint_in_background=false")
    deaths = [(1, 25, "host"), (2, 25, "host")]
    assert runs.start("disk", 3, deaths, *settings, fresh=True) == [EXIT_DONE, -9, -9]
    assert runs.membership("disk").starts == [(0, 3), (20, 1)]
    assert list(tmp_path.glob("disk.before-*")) == []
    runs.end("disk")


def test_a_place_that_cannot_be_written_is_bad_input(runs, tmp_path):
    (tmp_path / "file").touch()
    assert runs.start("file/run", 2, []) == [EXIT_BAD_INPUT] * 2


def test_fewer_ranks_and_more_have_the_bits_of_one(runs):
    """With reproducible: whoever dies, and whoever joins."""
    settings = ("run.reproducible=any ranks", "run.virtual_ranks=6", "run.rejoin_s=0")
    assert runs.start("one", 1, [], *settings) == [EXIT_DONE]
    assert runs.start("changing", 3, [(1, 20, "rank"), (0, 29, "rank")], *settings) == [EXIT_DONE] * 3
    assert len(runs.membership("changing").starts) > 2
    for changing, one in zip(runs.end("changing"), runs.end("one"), strict=True):
        np.testing.assert_array_equal(changing, one)


def test_too_few_are_left(runs):
    """They save where they are, and the next start goes on there."""
    codes = runs.start("few", 3, [(0, 18, "host"), (2, 27, "host")], SHARDS, "run.min_ranks=2", "run.rejoin_s=0")
    assert codes == [-9, EXIT_REQUEUE, -9]
    assert runs.saved("few") == [24]
    assert runs.start("few", 3, [], SHARDS, "run.min_ranks=2") == [EXIT_DONE] * 3
    assert runs.membership("few").starts == [(0, 3), (16, 2), (24, 3)]
    runs.end("few")


def test_undisturbed_it_has_the_bits_of_ranks_that_cannot_be_lost(runs, tmp_path):
    assert runs.start("alone", 1, []) == [EXIT_DONE]
    options = argparse.Namespace(run_dir=tmp_path / "ordinary", fresh=False, resume=False)
    train(read_job(tmp_path / "job.toml", ["run.elastic=false"]), alone(), options, StopSignals())
    for elastic, ordinary in zip(runs.end("alone"), runs.end("ordinary"), strict=True):
        np.testing.assert_array_equal(elastic, ordinary)
