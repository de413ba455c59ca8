"""Rows of episodes that ended on several ranks."""

import pytest

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.shapes.simulation import Ended
from hpcopt.solvers.actor_critic.ended import EndedEpisodes


@pytest.mark.parametrize("shared", [True, False])
def test_rank_0_tells_of_its_own_episodes_or_of_all(shared):
    def program(transport):
        world = World(transport)
        ended = [Ended(-1.5 * world.rank, 10 * world.rank + k) for k in range(2 - world.rank % 2)]
        return EndedEpisodes(ended, 48, shared=shared).columns(world)

    told = {name: column.tolist() for name, column in run_ranks(3, program)[0].items()}
    every = {"return": [0, 0, -1.5, -3, -3], "length": [0, 1, 10, 20, 21], "env_steps": [48] * 5}
    assert told == (every if shared else {name: column[:2] for name, column in every.items()})
