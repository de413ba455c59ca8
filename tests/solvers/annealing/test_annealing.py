"""Chains are in each state as often as Boltzmann says, swap as often as the closed form says, and are the same bits at
any number of ranks.
"""

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, DivergedError, JobError
from hpcopt.shapes import Context, Task
from hpcopt.solvers.annealing.solver import Annealing, AnnealingConfig
from hpcopt.testing.problem import Problem
from tests.solvers.annealing.walkers import ENERGIES, chains, task, walk

LADDER = AnnealingConfig(chains=3, moves=6, hottest=2.0, coldest=0.25)
COOLING = AnnealingConfig(method="simulated_annealing", chains=2, moves=3, hottest=2.0, coldest=0.05)
CHI2_99_OF_5 = 15.09


def boltzmann(temperature: float) -> np.ndarray:
    weights = np.exp(-np.array(ENERGIES) / temperature)
    return weights / weights.sum()


@pytest.fixture(scope="module")
def long_walk():
    """(solver, its stats, places of the chains after each step, the rung of each chain after each step)."""
    steps = 1200
    solver = LADDER.build(task(), Context(steps=steps, run_seed=5))
    places, rungs = [], []
    for _ in range(steps):
        rungs.append(list(solver.state_dict()["ladder"]["rungs"]))  # at which the step walks
        stats = solver.step(None)
        places.append([int(chain["state"]["place"]) for chain in chains(solver).values()])
    return solver, stats, np.array(places), np.array(rungs)


def test_each_rung_is_in_each_state_as_often_as_boltzmann_says(long_walk):
    """Every fourth step, which is 24 moves on a ring of 6: nearly independent."""
    _, _, places, rungs = long_walk
    temperatures = (0.25, math.sqrt(0.5), 2.0)
    for rung, temperature in enumerate(temperatures):
        seen = places[rungs == rung][20::4]
        expected = boltzmann(temperature) * len(seen)
        found = np.bincount(seen, minlength=len(ENERGIES))
        assert ((found - expected) ** 2 / expected).sum() < CHI2_99_OF_5, f"at {temperature}: {found}, not {expected}"
        other = boltzmann(0.5 * temperature) * len(seen)  # the test can fail
        assert ((found - other) ** 2 / other).sum() > CHI2_99_OF_5


def test_neighbours_swap_as_often_as_the_closed_form_says(long_walk):
    solver, stats, _, _ = long_walk
    temperatures = stats.tables["ladder"].values["temperature"]
    state = solver.state_dict()["ladder"]
    for low, (cold, hot) in enumerate(pairwise(temperatures)):
        chance = sum(
            p * q * min(1.0, math.exp((1 / cold - 1 / hot) * (a - b)))
            for (p, a), (q, b) in product(
                zip(boltzmann(cold), ENERGIES, strict=True), zip(boltzmann(hot), ENERGIES, strict=True)
            )
        )
        tries, swaps = state["tries"][low], state["swaps"][low]
        assert tries == 600
        assert abs(swaps / tries - chance) < 3.5 * math.sqrt(chance * (1 - chance) / tries)


@pytest.mark.parametrize("config", [LADDER, COOLING], ids=lambda config: config.method)
def test_the_same_bits_at_any_number_of_ranks(config):
    outcomes = []
    for ranks in (1, 2, 3, 5):
        runs = walk(config, 30, ranks)
        solver = runs[0][0]
        losses = [stats.loss for stats in runs[0][1]]
        scalars = [dict(stats.scalars) for stats in runs[0][1]]
        places = [{n: p for run in runs for n, p in run[2][step].items()} for step in range(30)]
        assert [sorted(step) for step in places] == [list(range(config.chains))] * 30
        assert all(run[1][-1].loss is None for run in runs[1:])
        assert len({int(run[0].model.place) for run in runs}) == 1
        outcomes.append((losses, scalars, places, solver.state_dict()["ladder"], int(solver.model.place)))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0] != walk(config, 30, 1, seed=1)


def test_another_seed_is_another_walk():
    one, other = (walk(LADDER, 10, seed=seed)[0][2] for seed in (0, 1))
    assert one != other


def test_the_best_only_gets_better_and_is_what_is_gathered():
    ((solver, stats, _),) = walk(
        AnnealingConfig(chains=2, moves=1, hottest=3.0, coldest=2.0), 50, energies=(1.0, 3.0, 0.5, 2.0)
    )
    best = [s.scalars["best"] for s in stats]
    assert best == sorted(best, reverse=True)
    assert best[-1] == 0.5 == float(solver.model())
    assert any(s.loss > b for s, b in zip(stats, best, strict=True))  # it has gone on
    assert stats[-1].scalars["moves"] == 100


def test_all_ranks_gather_the_best_whichever_rank_found_it():
    finders = set()
    for seed in range(6):
        runs = walk(AnnealingConfig(chains=3, moves=1, hottest=1.0, coldest=0.5), 2, ranks=3, seed=seed)
        for solver, stats, _ in runs:
            assert float(solver.model()) == stats[-1].scalars["best"]
        finders.add(runs[0][0].state_dict()["best_chain"])
    assert len(finders) > 1


def test_a_cold_chain_walks_downhill_and_a_hot_one_everywhere():
    cold, hot = (
        AnnealingConfig(method="simulated_annealing", chains=1, moves=60, hottest=t, coldest=t) for t in (1e-6, 1e6)
    )
    energies = (1.0, 2.0, 0.0, 0.5)
    assert {place for step in walk(cold, 10, energies=energies)[0][2] for place in step.values()} <= {2, 0, 3}
    assert walk(cold, 10, energies=energies)[0][2][-1][0] == 2
    stats = walk(hot, 5, energies=energies)[0][1]
    assert all(s.scalars["accepted"] == 1.0 for s in stats)


def test_cooling_goes_from_the_hottest_to_the_coldest():
    solver = COOLING.build(task(), Context(steps=3))
    temperatures = []
    for _ in range(3):
        temperatures.append(solver._temperature(0))
        assert not solver.step(None).tables
    assert temperatures == pytest.approx([2.0, math.sqrt(0.1), 0.05])


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("config", [LADDER, COOLING], ids=lambda config: config.method)
def test_it_goes_on_with_the_same_bits_at_another_number_of_ranks(config, before, after):
    straight = walk(config, 12)[0]

    def first(transport):
        solver = config.build(task(), Context(world=World(transport), steps=12))
        for _ in range(5):
            solver.step(None)
        solver.gather()
        return solver.state_dict(), solver.rank_state_dict()

    saved = run_ranks(before, first)

    def second(transport):
        solver = config.build(task(), Context(world=World(transport), steps=12))
        solver.load_state_dict(saved[0][0], [own for _, own in saved])
        losses = [solver.step(None).loss for _ in range(7)]
        solver.gather()
        return losses, int(solver.model.place), solver.state_dict()["ladder"]

    losses, place, ladder = run_ranks(after, second)[0]
    assert losses == [s.loss for s in straight[1][5:]]
    assert place == int(straight[0].model.place)
    assert ladder == straight[0].state_dict()["ladder"]


def test_another_number_of_chains_does_not_fit():
    solver = LADDER.build(task(), Context(steps=3))
    with pytest.raises(CheckpointError, match="it has 3 chains, and the job 2"):
        COOLING.build(task(), Context(steps=3)).load_state_dict(solver.state_dict(), [solver.rank_state_dict()])


def test_a_loss_that_is_no_number_is_named_on_every_rank():
    """One rank comes upon it, all say so."""

    def program(transport):
        config = AnnealingConfig(chains=3, moves=50, hottest=1.0, coldest=0.5)
        solver = config.build(task((0.0, 0.1, math.nan, 0.1)), Context(world=World(transport), steps=9))
        with pytest.raises(DivergedError, match=r"a state of chain \d is NaN, in step 1") as raised:
            solver.step(None)
        return str(raised.value), raised.value.on_every_rank

    assert len(set(run_ranks(3, program))) == 1


def test_no_chain_moves_to_what_is_forbidden():
    config = AnnealingConfig(chains=2, moves=40, hottest=5.0, coldest=1.0)
    ((_, stats, places),) = walk(config, 20, energies=(0.0, math.inf, 0.5, 0.2))
    assert {place for step in places for place in step.values()} == {0, 2, 3}
    assert all(math.isfinite(s.loss) for s in stats)


def test_what_cannot_be_annealed_is_refused():
    problem = Problem()
    with pytest.raises(JobError, match=r"Sequential has no propose\(\), undo\(\) and energy\(\)"):
        AnnealingConfig().build(problem.task(), Context(steps=1))
    with pytest.raises(JobError, match="front to back"):
        AnnealingConfig().build(Task(task().model, task().loss), Context(steps=1))
    with pytest.raises(ValueError, match=r"coldest = 2 is hotter than hottest = 1"):
        AnnealingConfig(hottest=1.0, coldest=2.0)


def test_dropout_is_off_in_a_walk():
    model = task().model
    model.dropout = nn.Dropout(0.5)
    walking = Task(model, lambda m, _: torch.tensor(float(m.dropout.training)), task().samples)
    solver = AnnealingConfig(chains=1, moves=2).build(walking, Context(steps=1))
    assert isinstance(solver, Annealing) and solver.step(None).loss == 0.0
