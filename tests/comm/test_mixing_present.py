"""Gossip over those present, against the products of mixing matrices in float64."""

import threading
from collections.abc import Collection, Mapping
from functools import partial

import numpy as np
import pytest
import torch

from hpcopt.comm import graphs
from hpcopt.comm.mixing import Choco, Metropolis, PushSum
from hpcopt.comm.receipts import GONE, HERE, MESSAGE, OPEN, Receipts
from hpcopt.compress import TopK
from tests.launching import PATIENCE_S
from tests.over_sockets import groups, lose_patience

N, ROUNDS, GAMMA = 5, 6, 0.3
CODEC = TopK(fraction=0.4)
Absent = Mapping[int, Collection[int]]  # ranks, by round
MIXERS = {
    "push_sum-exponential": (PushSum, graphs.exponential),
    "push_sum-random": (PushSum, partial(graphs.random, seed=5)),
    "metropolis-ring": (Metropolis, graphs.ring),
    "choco-ring": (partial(Choco, codec=CODEC, gamma=GAMMA), graphs.ring),
}


def values(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(N).astype(np.float32)


def own_step(rank: int, number: int) -> np.ndarray:
    """What a rank's own training adds before a round."""
    return np.random.default_rng([rank, number]).standard_normal(N).astype(np.float32)


def mixing_matrix(kind: str, size: int, number: int, present: Collection[int]) -> np.ndarray:
    """What each rank takes of each other's values; weights that nobody takes stay where they are."""
    edges = MIXERS[kind][1](size)(number - 1)
    matrix = np.zeros((size, size))
    for source in range(size):
        for target in edges[source]:
            if source in present and target in present:
                degree = len(edges[source])
                weight = 1 / (1 + degree) if "push" in kind else 1 / (1 + max(degree, len(edges[target])))
                matrix[target, source] = weight
    return matrix + np.diag(1 - matrix.sum(0))


def serial(kind: str, size: int, absent: Absent) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of all ranks after all rounds, (P, n) and (P,): one process."""
    x, w = np.stack([values(rank) for rank in range(size)]).astype(float), np.ones(size)
    copies = np.zeros_like(x)
    for number in range(1, ROUNDS + 1):
        present = [rank for rank in range(size) if rank not in absent.get(number, ())]
        for rank in present:
            x[rank] += own_step(rank, number)
        matrix = mixing_matrix(kind, size, number, present)
        mass, weight = x[present].sum(0), w[present].sum()
        if "choco" in kind:
            for rank in present:
                change = x[rank] - copies[rank]
                kept = np.argsort(-np.abs(change))[: round(CODEC.fraction * N)]
                copies[rank, kept] += change[kept]
            x += GAMMA * (matrix - np.eye(size)) @ copies
        else:
            x, w = matrix @ x, matrix @ w
        np.testing.assert_allclose(x[present].sum(0), mass)
        assert w[present].sum() == pytest.approx(weight) and (w > 0).all()
    return x, w


def run(kind: str, size: int, before=lambda *_: None, clock=lambda group, calls: None, *, dying=(), patience_s=None):
    """Mixers in the end, by rank; None of those that die."""
    make_mixer, graph = MIXERS[kind]
    calls: dict[int, Receipts] = {}

    def program(transport):
        mixer = make_mixer(transport, graph(size), torch.from_numpy(values(transport.rank)), patience_s=patience_s)
        calls[transport.rank] = mixer.receipts
        for number in range(1, ROUNDS + 1):
            before(transport.rank, number)
            present = mixer.mix(mixer.x + torch.from_numpy(own_step(transport.rank, number)), number)
            assert present == (transport.rank not in mixer.receipts.absent)
        return mixer

    def dead_or_alive(transport):
        try:
            return program(transport)
        except Exception:
            if transport.rank in dying:
                return None
            raise

    with groups() as make:
        group = make(size)
        ticking = group.submit(clock, group, calls)
        found = group.run(dead_or_alive)
        ticking.result(PATIENCE_S)
    return found


def check(found, kind: str, absent: Absent) -> None:
    x, w = serial(kind, len(found), absent)
    for rank, mixer in enumerate(found):
        if mixer is not None:
            np.testing.assert_allclose(mixer.x.numpy(), x[rank], rtol=1e-5, atol=1e-6)
            assert mixer.weight == pytest.approx(w[rank], rel=1e-12)
    alive = [mixer for mixer in found if mixer is not None]
    for one in alive:
        for other in alive if isinstance(one, Choco) else ():
            for rank in set(one.copies) & set(other.copies):
                assert torch.equal(one.copies[rank], other.copies[rank])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", MIXERS)
def test_all_are_there(kind, size):
    check(run(kind, size), kind, {})


@pytest.mark.parametrize("late", [[0], [1, 3]])
@pytest.mark.parametrize("kind", MIXERS)
def test_who_is_late_stays_where_it_was_and_goes_on_with_the_others(kind, late):
    """In two rounds, which the others have done before it begins."""
    size, there, again, gone_on = 4, threading.Barrier(5), threading.Barrier(4), threading.Event()
    early = [rank for rank in range(size) if rank not in late]

    def before(rank, number):
        if number == 3:
            there.wait(PATIENCE_S)
            if rank in late:
                assert gone_on.wait(PATIENCE_S)
        if number == 5:
            again.wait(PATIENCE_S)

    def clock(_group, calls):
        there.wait(PATIENCE_S)
        for number in (3, 4):
            lose_patience(calls[0], number, early)
        gone_on.set()

    found = run(kind, size, before, clock, patience_s=PATIENCE_S)
    check(found, kind, {3: late, 4: late})


@pytest.mark.parametrize(("size", "lost"), [(2, 0), (2, 1), (3, 0), (4, 2)])
@pytest.mark.parametrize("kind", MIXERS)
def test_a_message_of_one_who_dies_counts_for_all_or_for_none(kind, size, lost, monkeypatch):
    """It has reached one neighbour, and no other; or the only one, but the ballot nobody."""
    send, told = Receipts._send, []

    def send_to_one(call, rank, tag, body):
        doomed = call._rank == lost and call._links.round == 2
        if doomed and (tag != MESSAGE or told):
            call._links.close()
        elif doomed:
            told.append(rank)
        send(call, rank, tag, body)

    monkeypatch.setattr(Receipts, "_send", send_to_one)
    found = run(kind, size, dying=[lost])
    assert len(told) == 1
    assert all(mixer is None or mixer.receipts.over for mixer in found)
    check(found, kind, {number: [lost] for number in range(3, ROUNDS + 1)})


@pytest.mark.parametrize(
    ("lacks", "present"),
    [
        ({}, [0, 1, 2, 3]),
        ({0: {2: GONE}}, [0, 1, 3]),  # rank 0 has not what rank 2 has sent: rank 2 is at fault, or dead
        ({2: {0: GONE}}, [1, 2, 3]),
        ({1: {2: GONE}, 2: {1: GONE}}, [0, 1, 3]),  # a cut between the two
        ({0: {3: OPEN}, 1: {3: OPEN}, 3: {0: GONE}}, [0, 1, 2]),
    ],
)
def test_those_count_whose_messages_the_others_have(lacks, present):
    ballots = {rank: np.full(4, HERE, np.uint8) for rank in range(4)}
    for rank, states in lacks.items():
        for other, state in states.items():
            ballots[rank][other] = state
    with groups() as make:
        (counting,) = make(1).run(lambda transport: transport.receipts()._counting)
    assert list(counting(ballots)) == present
