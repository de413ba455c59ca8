"""Votes, local steps and gossip go on over those present: a rank's death undoes no step of the others."""

import h5py
import pytest

from hpcopt.errors import EXIT_DONE
from tests.elastic.runs import Runs

LOCAL = (
    "solver={{name = 'tests.elastic.dying:DyingLocalConfig', deaths = '{deaths}', every = {every}, "
    "optimizer = {{name = 'adamw', lr = 0.003}}}}"
)
GOSSIP = (
    "solver={{name = 'tests.elastic.dying:DyingGossipConfig', deaths = '{deaths}', {mixing}, "
    "optimizer = {{name = 'adamw', lr = 0.003}}}}"
)
VOTE = (
    "solver.optimizer={name = 'signum', lr = 0.001, momentum = 0.5}",
    "exchange={name = 'vote'}",
)


@pytest.fixture
def runs(tmp_path, digits) -> Runs:
    return Runs(tmp_path, digits / "digits")


def table(runs: Runs, name: str) -> list[tuple[int, int]]:
    """Rounds, and ranks that were absent."""
    with h5py.File(runs.folder / name / "metrics.h5") as file:
        group = file["absences"]
        return list(zip(group["step"][:].tolist(), group["rank_number"][:].astype(int).tolist(), strict=True))


def test_a_vote_goes_on_in_the_same_step(runs):
    """Without rank 0, who counts ballots and writes the metrics."""
    settings = (*VOTE, "run.rejoin_s=0", "run.copy_every=1000")
    assert runs.start("vote", 3, [(0, 10, "host")], *settings) == [-9, EXIT_DONE, EXIT_DONE]
    assert runs.membership("vote").starts == [(0, 3), (11, 2)]
    assert table(runs, "vote") == [(11, 0)]
    assert "resumed at step 11" in runs.log("vote")
    runs.replay("vote", 3, *settings, rescaled=True)


def test_a_place_is_taken_again(runs):
    """By one that has none of what the lost one held: so other bits than those of an undisturbed run."""
    settings = (*VOTE, "run.copy_every=1000", "run.rejoin_s=600")
    assert runs.start("taken", 3, [(1, 19, "rank")], *settings) == [EXIT_DONE] * 3
    assert runs.membership("taken").starts == [(0, 3), (20, 3)]
    assert table(runs, "taken") == [(20, 1)]
    runs.replay("taken", 3, *settings, rescaled=True)


def test_local_steps_go_on_to_the_end_of_the_round(runs):
    """With an evaluation between the death and the round's end, which is left out."""
    settings = (LOCAL.format(deaths=runs.deaths, every=6), "run.rejoin_s=0", "run.copy_every=1000")
    assert runs.start("local", 3, [(1, 14, "host")], *settings) == [EXIT_DONE, -9, EXIT_DONE]
    assert runs.membership("local").starts == [(0, 3), (18, 2)]
    assert table(runs, "local") == [(18, 1)]
    runs.replay("local", 3, *settings, rescaled=True)


def test_gossip_goes_on_in_the_same_step(runs):
    """Without rank 0; of two ranks one is left."""
    gossip = GOSSIP.format(deaths=runs.deaths, mixing="mixing = 'metropolis', graph = 'ring'")
    settings = (gossip, "run.rejoin_s=0", "run.copy_every=1000")
    assert runs.start("gossip", 2, [(0, 10, "host")], *settings) == [-9, EXIT_DONE]
    assert runs.membership("gossip").starts == [(0, 2), (11, 1)]
    assert table(runs, "gossip") == [(11, 0)]
    runs.replay("gossip", 2, *settings, rescaled=True)


def test_a_place_is_taken_again_by_one_that_begins_from_the_mean(runs):
    """Outer parameters that are mixed; the ranks stop once on the way, and resume."""
    local = LOCAL.format(deaths=runs.deaths, every="5, gossip = {mixing = 'metropolis', graph = 'ring'}")
    settings = (local, "run.copy_every=1000", "run.rejoin_s=600")
    assert runs.start("mixed", 3, [(1, 14, "rank")], *settings, "run.steps=20") == [EXIT_DONE] * 3
    assert runs.start("mixed", 3, [], *settings) == [EXIT_DONE] * 3
    assert runs.membership("mixed").starts == [(0, 3), (15, 3)]
    assert table(runs, "mixed") == [(15, 1)]
    runs.replay("mixed", 3, *settings, rescaled=True)


@pytest.mark.parametrize("method", ["vote", "local", "gossip"])
def test_a_rank_is_late_for_some_rounds_and_catches_up(runs, method):
    """It goes on when the others are at step 18; more of them may be late, since time is short, and that is repeated,
    too.
    """
    if method == "vote":
        settings, every = (*VOTE, "exchange.patience_s=0.1"), 1
    elif method == "gossip":
        settings, every = (GOSSIP.format(deaths=runs.deaths, mixing="patience_s = 0.1"),), 1
    else:
        settings, every = (LOCAL.format(deaths=runs.deaths, every=3), "solver.patience_s=0.1"), 3
    settings = (*settings, "run.log_every_s=1000", "run.copy_every=1000")
    assert runs.start(method, 3, [(1, 12, 18)], *settings) == [EXIT_DONE] * 3
    assert {(number, 1) for number in range(12 + every, 19, every)} <= set(table(runs, method))
    assert runs.membership(method).starts == [(0, 3)]
    runs.replay(method, 3, *settings, rescaled=True)
    assert table(runs, f"{method}-again") == table(runs, method)
