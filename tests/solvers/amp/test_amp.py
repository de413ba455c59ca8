"""Instances in flight: with one, sequential SGD to the bit; with more, each message answered and nothing left."""

import copy
import math

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, connect
from hpcopt.errors import CheckpointError, JobError
from hpcopt.optim import SgdConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.amp.solver import AmpConfig, average
from hpcopt.testing.problem import Problem, flat
from tests.solvers.amp.problem import (
    GRAPHS,
    LISTS,
    SGD,
    STEPS,
    TREES,
    batches,
    made,
    sequential,
    trained,
    workload,
)

ONE = AmpConfig(max_active_keys=1, optimizer=SGD)
DATA = pytest.mark.parametrize("data", [LISTS, TREES, GRAPHS], ids=["lists", "trees", "graphs"])


@DATA
def test_one_instance_in_flight_is_sequential_sgd_to_the_bit(data):
    ((parameters, stats, staleness),) = trained(ONE, data)
    model, losses = sequential(data)
    assert torch.equal(parameters, flat(model))
    assert [s.loss for s in stats] == pytest.approx(losses.tolist())
    assert set(staleness["staleness"]) == {0}


@pytest.mark.parametrize("size", [2, 3])
def test_nodes_on_several_ranks_are_sequential_sgd_to_the_bit(size):
    model, losses = sequential(LISTS)
    for rank, (parameters, stats, _) in enumerate(trained(ONE, LISTS, size)):
        assert torch.equal(parameters, flat(model))
        told = [s.loss for s in stats]
        assert told == (pytest.approx(losses.tolist()) if rank == 0 else [None] * STEPS)


@DATA
@pytest.mark.parametrize("size", [1, 3])
def test_more_in_flight_never_pass_the_cap_and_are_stale(data, size):
    results = trained(AmpConfig(max_active_keys=4, optimizer=SGD), data, size)
    parameters, stats, staleness = results[0]
    assert [s.scalars["in_flight"].value for s in stats] == [4] * STEPS
    assert max(staleness["staleness"]) > 0
    assert all(torch.equal(theirs, parameters) and theirs.isfinite().all() for theirs, _, _ in results)
    heads = [n for name, n in zip(staleness["node"], staleness["messages"], strict=True) if name == "head"]
    assert sum(heads) == STEPS * data.batch


@pytest.mark.parametrize("every", [3, 1000])
def test_a_node_steps_by_the_mean_of_so_many_gradients(every):
    plain = SgdConfig(lr=1, momentum=0)
    solver = made(AmpConfig(max_active_keys=3 if every > 5 else 1, min_update_frequency=every, optimizer=plain), LISTS)
    model, loss = copy.deepcopy(solver.model), workload(LISTS).loss
    (batch,) = batches(LISTS, 1)
    solver.step(batch)
    solver.gather()
    for count, one in enumerate(batch.split(len(batch)), 1):
        loss(model, one).backward()
        if count % every == 0:
            with torch.no_grad():
                for p in model.parameters():
                    p -= p.grad / every
                    p.grad = None
    for p, expected in zip(solver.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-5, atol=1e-6)


def test_random_trees_on_three_ranks_come_to_an_end():
    config = AmpConfig(max_active_keys=16, optimizer=SGD, place={"leaf": 1, "compose": 2, "head": 0})
    results = trained(config, TREES.model_copy(update={"batch": 30, "train": 120}), 3)
    assert all(s.loss is None or math.isfinite(s.loss) for _, stats, _ in results for s in stats)
    assert sum(s.scalars["messages"].value for _, stats, _ in results for s in stats) > 500


def test_replicas_train_on_their_turns_and_are_averaged():
    turns = [range(first, STEPS * LISTS.batch, 2) for first in (0, 1)]
    models = [sequential(LISTS, turn)[0] for turn in turns]
    average(models)
    config = ONE.model_copy(update={"replicas": 2})
    for size in (2, 4):
        for parameters, _, _ in trained(config, LISTS, size):
            assert torch.equal(parameters, flat(models[0]))
    (parameters, _, _), *_ = trained(config.model_copy(update={"max_active_keys": 6}), LISTS, 2)
    assert not torch.equal(parameters, flat(models[0])) and parameters.isfinite().all()


def test_resumed_from_a_cut_with_gradients_that_wait_for_more():
    config = AmpConfig(max_active_keys=1, min_update_frequency=4, optimizer=SGD)
    straight, first, second = (made(config, LISTS) for _ in range(3))
    for batch in batches(LISTS, 6):
        straight.step(batch)
    for batch in batches(LISTS, 3):
        first.step(batch)
    first.gather()
    shared, own = copy.deepcopy((first.state_dict(), first.rank_state_dict()))
    assert any(node["gathered"] for node in own["nodes"].values())
    second.load_state_dict(shared, [own])
    for batch in batches(LISTS, 3, start=3):
        second.step(batch)
    straight.gather()
    second.gather()
    assert torch.equal(flat(second.model), flat(straight.model))
    del own["nodes"]["cell"]
    with pytest.raises(CheckpointError, match="no node 'cell'"):
        made(config, LISTS).load_state_dict(shared, [own])


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"replicas": 2}, 3, "3 ranks cannot be shared by .* replicas = 2"),
        ({"place": {"cells": 0}}, 2, r"cells = 0: nodes are cell, embed, head, and ranks 0 to 1"),
        ({"place": {"cell": 2}}, 2, "ranks 0 to 1"),
    ],
)
def test_ranks_that_do_not_suit_are_refused(settings, size, message):
    with pytest.raises(JobError, match=message):
        run_ranks(size, lambda transport: made(AmpConfig(**settings), LISTS, World(transport)))


def test_a_loss_that_needs_more_than_outputs_is_refused():
    problem = Problem()
    with pytest.raises(JobError, match="function of the outputs"):
        AmpConfig().build(Task(problem.model(), lambda model, batch: model.weight.sum()), Context(steps=1))


@pytest.mark.parallel([2, 3])
def test_processes_are_sequential_sgd_to_the_bit():
    world = connect()
    solver = made(ONE, LISTS, world)
    for batch in batches(LISTS):
        solver.step(batch)
    solver.gather()
    assert torch.equal(flat(solver.model), flat(sequential(LISTS)[0]))
    solver = made(AmpConfig(max_active_keys=8, optimizer=SGD), TREES, world)
    for batch in batches(TREES):
        solver.step(batch)
    solver.gather()
    world.require_same([flat(solver.model)], "the parameters")
