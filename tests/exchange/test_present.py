"""Votes of those who are present, against a count of the same ballots in one process."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.exchange import Exchange, VoteConfig
from tests.launching import PATIENCE_S
from tests.over_sockets import groups, lose_patience

SHAPES, STEPS, BETA = ((3, 50), (7,)), 5, 0.5


def gradients(rank: int, step: int) -> np.ndarray:
    values = np.random.default_rng([rank, step]).standard_normal(157).astype(np.float32)
    return np.where(np.arange(157) == 3, np.nan, values) if rank == 1 and step == 1 else values


def majority(momenta: list[np.ndarray], weights: list[int]) -> np.ndarray:
    minus = sum(weight * (momentum < 0) for momentum, weight in zip(momenta, weights, strict=True))
    return np.where(2 * minus > sum(weights), -1, 1)


def serial(size: int, absent: dict[int, set[int]], weights=None) -> list[np.ndarray]:
    """The outcomes of all steps. A rank that is absent keeps its momentum; NaN stay out of it."""
    momenta, outcomes = [np.zeros(157, np.float32) for _ in range(size)], []
    for step in range(STEPS):
        present = [rank for rank in range(size) if rank not in absent.get(step, ())]
        for rank in present:
            if np.isfinite(gradients(rank, step)).all():
                momenta[rank] = np.float32(BETA) * momenta[rank] + np.float32(1 - BETA) * gradients(rank, step)
        votes = [1 if weights is None else weights[rank] for rank in present]
        if weights is None and len(present) % 2 == 0:
            votes[step % len(present)] = 2
        outcomes.append(majority([momenta[rank] for rank in present], votes))
    return outcomes


def outcomes(transport, before=lambda *_: None, **settings) -> list[np.ndarray]:
    """Of all steps on one rank."""
    parameters = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in SHAPES])
    config = VoteConfig(momentum=BETA, bucket_mb=0.0003, **settings)
    exchange, found = Exchange(World(transport), parameters, config), []
    for step in range(STEPS):
        before(transport.rank, step, exchange.roll_call)
        exchange.zero()
        if not exchange.decided():
            flat = torch.from_numpy(gradients(transport.rank, step))
            for p, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
                p.grad.copy_(part.view_as(p))
        exchange.finish()
        found.append(np.concatenate([p.grad.numpy().ravel() for p in parameters]))
    return found


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("weights", [None, (2, 1, 0, 3)])
def test_all_are_there(size, weights):
    given = None if weights is None else weights[:size]
    with groups() as make:
        found = make(size).run(lambda transport: outcomes(transport, weights=given))
    for theirs in found:
        np.testing.assert_array_equal(theirs, serial(size, {}, given))


@pytest.mark.parametrize("late", [[2], [0], [1, 2], [0, 1, 3]])
def test_who_is_late_has_no_vote_and_the_same_outcome(late):
    """In two steps, which the others have done before it begins."""
    size, there, again = 4, threading.Barrier(5), threading.Barrier(4)
    early = [rank for rank in range(size) if rank not in late]
    calls, gone_on = {}, threading.Event()

    def before(rank, step, roll_call):
        calls[rank] = roll_call
        if step == 2:
            there.wait(PATIENCE_S)
            if rank in late:
                assert gone_on.wait(PATIENCE_S)
        if step == 4:
            again.wait(PATIENCE_S)

    def clock():
        there.wait(PATIENCE_S)
        for number in (3, 4):
            lose_patience(calls[0], number, early)
        gone_on.set()

    with groups() as make:
        group = make(size)
        ticking = group.submit(clock)
        found = group.run(lambda transport: outcomes(transport, before, patience_s=PATIENCE_S))
        ticking.result(PATIENCE_S)
    for theirs in found:
        np.testing.assert_array_equal(theirs, serial(size, {2: set(late), 3: set(late)}))


def test_where_ranks_cannot_be_absent_patience_is_an_error():
    def program(transport):
        with pytest.raises(JobError, match="elastic = true"):
            Exchange(World(transport), nn.Linear(2, 2), VoteConfig(patience_s=1))

    run_ranks(2, program)


def test_a_vote_by_nodes_has_no_patience():
    with pytest.raises(ValueError, match="by_nodes"):
        VoteConfig(patience_s=1, by_nodes=True)
