"""Who acts or learns is killed in the middle of episodes: the run goes on, and no transition is in the replay twice."""

import h5py
import numpy as np
import pytest

from hpcopt.errors import EXIT_DONE
from hpcopt.store.checkpoint import Checkpoints, rank_part
from tests.elastic.runs import STEPS, Runs
from tests.launching import PATIENCE_S

BATCH, LIMIT, WORLDS = 8, 7, 4
JOB = (
    f"workload={{name = 'control', environment = 'tests.solvers.actor_critic.worlds:Track', environments = {WORLDS}, "
    f"batch = {BATCH}, test = 2, actor = {{name = 'mlp', width = 16}}, critic = {{name = 'mlp', width = 16}}}}",
    "solver.name='tests.elastic.dying:DyingActorCriticConfig'",
    "solver.warmup=16",
    "solver.batch_size=16",
)


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path, tmp_path)


def collected(runs: Runs, name: str) -> np.ndarray:
    """The replay in the end, after a look at what the metrics say of it."""
    with h5py.File(runs.folder / name / "metrics.h5") as file:
        np.testing.assert_array_equal(file["steps/env_steps"][:], BATCH * np.arange(1, STEPS + 1))
        ended = file["episodes/length"][:].sum()
    assert 0 <= BATCH * STEPS - ended <= (LIMIT - 1) * WORLDS  # the others are under way
    part = Checkpoints(runs.folder / name / "checkpoints", keep=2).read_part(STEPS, rank_part(0))
    return part["solver"]["learner"]["replay"]["rows"].numpy()


def test_a_collector_is_lost_and_the_other_acts_in_its_environments(runs):
    codes = runs.start("lost", 3, [(1, 13, "host")], *JOB, "run.rejoin_s=0")
    assert codes == [EXIT_DONE, -9, EXIT_DONE] and runs.membership("lost").starts == [(0, 3), (8, 2)]
    rows = collected(runs, "lost")
    assert len(rows) == BATCH * STEPS == len(np.unique(rows, axis=0))


def test_places_are_taken_again_with_the_same_bits(runs):
    """A collector's and the learner's, with the replay that it had."""
    deaths = [(2, 11, "rank"), (0, 21, "rank")]
    assert runs.start("taken", 3, deaths, *JOB, f"run.rejoin_s={PATIENCE_S}") == [EXIT_DONE] * 3
    assert runs.dead() == 2 and runs.membership("taken").starts == [(0, 3)]
    runs.replay("taken", 3, *JOB)
    np.testing.assert_array_equal(collected(runs, "taken"), collected(runs, "taken-again"))
