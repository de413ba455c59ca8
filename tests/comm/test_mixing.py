"""Gossip: the mean is conserved, and reached, whatever the graph, the delays and the codec."""

import math
import random
import time

import numpy as np
import pytest
import torch

from hpcopt.comm import graphs
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.mixing import Choco, Metropolis, PushSum
from hpcopt.compress import QSGD, Natural, TopK
from hpcopt.errors import JobError

N = 37


def values(size: int) -> list[torch.Tensor]:
    return [torch.randn(N, generator=torch.Generator().manual_seed(rank)) for rank in range(size)]


def mean(size: int) -> torch.Tensor:
    return torch.stack(values(size)).double().mean(0).float()


GRAPHS = {
    "ring": graphs.ring,
    "exponential": graphs.exponential,
    "random": lambda size: graphs.random(size, seed=5),
}


@pytest.mark.parametrize("tau", [0, 1, 3])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("size", [1, 2, 3, 6, 8])
def test_push_sum_agrees_on_the_mean_and_conserves_mass_under_delays(size, graph, tau):
    """Each rank is late at random; what is under way counts, so drained masses are those of the start."""

    rounds = (50 + 8 * (graph == "ring") * size) * (1 + tau)

    def program(t):
        late = random.Random(t.rank)
        mixer = PushSum(t, GRAPHS[graph](size), values(size)[t.rank].clone(), tau)
        for _ in range(rounds):
            if late.random() < 0.02:
                time.sleep(0.002 * late.random())
            mixer.mix()
        mixer.drain()
        return mixer.x.clone(), mixer.weight, mixer.estimate(torch.empty(N))

    results = run_ranks(size, program)
    mass = torch.stack(values(size)).double().sum(0)
    rounding = 1e-6 * max(1, rounds / 200)  # of float32, round by round
    assert (sum(x.double() for x, _, _ in results) - mass).norm() <= rounding * mass.norm()
    assert sum(weight for _, weight, _ in results) == pytest.approx(size, abs=1e-9)
    for _, _, z in results:
        torch.testing.assert_close(z, mean(size), rtol=1e-5, atol=2e-6)


def test_delays_do_not_change_a_bit():
    def program(t, late):
        mixer = PushSum(t, graphs.exponential(4), values(4)[t.rank].clone(), tau=2)
        for step in range(6):
            time.sleep(0.005 * late * ((t.rank + step) % 3))
            mixer.mix()
        return mixer.x.clone()

    prompt, late = run_ranks(4, lambda t: program(t, 0)), run_ranks(4, lambda t: program(t, 1))
    assert all(torch.equal(a, b) for a, b in zip(prompt, late, strict=True))


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_one_peer_exponential_averages_exactly_in_log_p_rounds(size):
    def program(t):
        mixer = PushSum(t, graphs.exponential(size), values(size)[t.rank].clone())
        for _ in range((size - 1).bit_length()):
            mixer.mix()
        return mixer.x.clone()

    for x in run_ranks(size, program):
        torch.testing.assert_close(x, mean(size), rtol=1e-6, atol=5e-7)


def test_raw_values_do_not_agree_on_an_uneven_graph(tmp_path):
    """Rank 0 sends to two, the others to one: only x / w is the mean."""
    file = tmp_path / "graph.txt"
    file.write_text("0 1  # out of 0\n0 2\n1 0\n2 1\n")

    def program(t):
        mixer = PushSum(t, graphs.from_file(file, 3), values(3)[t.rank].clone())
        for _ in range(80):
            mixer.mix()
        return mixer.x.clone(), mixer.estimate(torch.empty(N))

    results = run_ranks(3, program)
    for _, z in results:
        torch.testing.assert_close(z, mean(3), rtol=1e-5, atol=1e-5)
    assert max((x - mean(3)).norm() for x, _ in results) > 0.05 * mean(3).norm()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_metropolis_agrees_and_conserves(size):
    def program(t):
        mixer = Metropolis(t, graphs.ring(size), values(size)[t.rank].clone())
        for _ in range(150):
            mixer.mix()
        return mixer.x.clone()

    for x in run_ranks(size, program):
        torch.testing.assert_close(x, mean(size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("codec", "gamma"), [(QSGD(bits=4), 0.6), (TopK(fraction=0.2), 0.2)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_compressed_differences_agree_on_the_same_mean(size, codec, gamma):
    def program(t):
        mixer = Choco(t, graphs.ring(size), values(size)[t.rank].clone(), codec, gamma)
        for _ in range(300):
            mixer.mix()
        return mixer.x.clone()

    results = run_ranks(size, program)
    torch.testing.assert_close(torch.stack(results).mean(0), mean(size), rtol=1e-4, atol=1e-5)
    for x in results:
        torch.testing.assert_close(x, mean(size), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_what_cannot_be_sent_is_seen_by_the_neighbours_and_stays_in_no_copy(bad):
    """3e38: natural compression carries it neither. The next round, with values put back, goes on as ever."""

    def program(t):
        mixer = Choco(t, graphs.ring(4), values(4)[t.rank].clone(), Natural(), 0.5)
        mixer.mix()
        good, its_copies = mixer.x.clone(), [copy.clone() for j, copy in mixer.copies.items() if j == 1]
        if t.rank == 1:
            mixer.x[3] = bad
        mixer.mix()
        seen = not mixer.x.isfinite().all()
        for before, after in zip(its_copies, [copy for j, copy in mixer.copies.items() if j == 1], strict=True):
            assert torch.equal(before, after)
        mixer.x.copy_(good)
        mixer.mix()
        assert mixer.x.isfinite().all() and all(copy.isfinite().all() for copy in mixer.copies.values())
        return bool(seen)

    assert run_ranks(4, program) == [True, True, True, False]  # rank 3 is no neighbour of rank 1


@pytest.mark.parametrize("size", [1, 2, 3, 6, 9])
def test_metropolis_weights_are_doubly_stochastic(size):
    star = [list(range(1, size))] + [[0]] * (size - 1)
    for edges in (graphs.ring(size)(0), star):
        matrix = np.zeros((size, size))
        for rank in range(size):
            for j, weight in graphs.metropolis(edges, rank).items():
                matrix[rank, j] = weight
            matrix[rank, rank] = 1 - matrix[rank].sum()
        assert (matrix >= 0).all()
        np.testing.assert_allclose(matrix.sum(0), 1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("graph", GRAPHS)
def test_senders_and_receivers_see_the_same_graph(graph, size):
    for step in range(6):
        edges = GRAPHS[graph](size)(step)
        assert all(rank not in targets for rank, targets in enumerate(edges))
        assert sum(len(graphs.sources(edges, rank)) for rank in range(size)) == sum(map(len, edges))


def test_a_planned_round_is_what_is_sent():
    def program(t):
        mixer = PushSum(t, graphs.exponential(3), torch.zeros(100))
        for _ in range(16):
            mixer.mix()
        return t.traffic.sent_bytes // 16, mixer.planned_bytes(t.rank)

    assert all(sent == planned for sent, planned in run_ranks(3, program))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0 1\n1 0\n", "cannot be reached"),
        ("0 5\n", "not an edge"),
        ("0 x\n", "one edge a line"),
        ("0 1 2", "not an edge"),
    ],
)
def test_a_graph_that_cannot_work_is_refused(tmp_path, text, complaint):
    file = tmp_path / "graph.txt"
    file.write_text(text)
    with pytest.raises(JobError, match=complaint):
        graphs.from_file(file, 3)


def test_mixing_both_ways_needs_edges_both_ways():
    with pytest.raises(JobError, match="undirected"):
        graphs.metropolis([[1], [2], [0]], 0)
