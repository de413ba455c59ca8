"""The model against its closed forms, and its fit against lines that are known."""

import math

import numpy as np
import pytest

from hpcopt.comm import alpha_beta
from hpcopt.comm.alpha_beta import CodecCost, Line, Machine, fit
from hpcopt.comm.ring import SEGMENT_BYTES

A, B, G = 2e-5, 1e9, 5e9
CODEC = CodecCost(Line(1e-6, 4e9), Line(2e-6, 6e9), 8.0)
SIZES = [4096, 1 << 20, 1 << 22]


LINK, NETWORK = Line(A, B), Line(1e-4, 1e8)


def machine(nodes: tuple[int, ...], inside=LINK, between=NETWORK) -> Machine:
    return Machine(nodes, inside, between, Line(0.0, G), ((1e3, 1e-4), (1e6, 1e-2)))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", [2, 3, 4, 5, 8, 16, 128])
def test_on_one_node_the_sums_are_the_closed_forms(p, n):
    m = machine((0,) * p)
    segments = math.ceil(n / p / SEGMENT_BYTES)
    ring = 2 * (p - 1) * segments * A + 2 * (p - 1) / p * n / B + (p - 1) / p * n / G
    assert alpha_beta.ring_s(m, n) == pytest.approx(ring)
    rounds, fold = int(math.log2(p)), 0.0 if p & (p - 1) == 0 else 2 * (A + n / B) + n / G
    assert alpha_beta.doubling_s(m, n) == pytest.approx(rounds * (A + n / B + n / G) + fold)
    kernels = p * 1e-6 + n / 4e9 + (2 * p - 1) * (2e-6 + n / p / 6e9)
    two_phase = 2 * (p - 1) * A + 2 * (p - 1) / p * n / (8 * B) + kernels
    assert alpha_beta.two_phase_s(m, n, CODEC) == pytest.approx(two_phase)
    assert alpha_beta.two_phase_by_nodes_s(machine(tuple(range(p)), between=Line(A, B)), n, CODEC) == pytest.approx(
        two_phase
    )


@pytest.mark.parametrize("n", SIZES)
def test_half_the_bytes_and_two_casts(n):
    p, m = 4, machine((0,) * 4)
    casts = CodecCost(Line(0.0, 8e9), Line(0.0, 7e9), 2.0)
    segments = math.ceil(n / p / SEGMENT_BYTES)
    half = 2 * (p - 1) * (segments * A + n / 2 / p / B) + (p - 1) / p * n * (1 / G + 1 / 8e9 + 1 / 7e9)
    assert alpha_beta.ring_s(m, n, casts) == pytest.approx(half)


def test_ranks_of_a_node_share_its_link():
    """4 ranks on each of 3 nodes: the ring crosses once a node, an all-to-all with all ranks that have no neighbour
    left at that distance."""
    nodes, n = (0,) * 4 + (1,) * 4 + (2,) * 4, 1 << 20
    m = machine(nodes, inside=Line(0.0, math.inf), between=Line(0.0, 1e8))
    assert alpha_beta.ring_s(m, n) == pytest.approx(22 * n / 12 / 1e8 + 11 / 12 * n / G)
    crossing = sum(min(distance, 4, 12 - distance) for distance in range(1, 12))
    free = CodecCost(Line(), Line(), 8.0)
    assert alpha_beta.two_phase_s(m, n, free) == pytest.approx(2 * crossing * n / 12 / 8 / 1e8)
    dense = 3 * (n / 4 / G)
    assert alpha_beta.two_phase_by_nodes_s(m, n, free) == pytest.approx(2 * 2 * 4 * n / 4 / 3 / 8 / 1e8 + dense)
    assert alpha_beta.two_phase_by_nodes_s(m, n, free) < alpha_beta.two_phase_s(m, n, free)


def test_doubling_pays_for_short_tensors_and_the_ring_for_long_ones():
    """The bound of the facts: doubling beats two terms of n / B while n < L a B / (L - 2 (P - 1) / P)."""
    m = Machine((0,) * 16, Line(25e-6, 1.15e9), Line(), Line(), ((1, 1),))
    crossover = (30 - 4) * 25e-6 * 1.15e9 / (4 - 2 * 15 / 16)
    assert alpha_beta.doubling_s(m, 0.98 * crossover) < alpha_beta.ring_s(m, 0.98 * crossover)
    assert alpha_beta.doubling_s(m, 1.02 * crossover) > alpha_beta.ring_s(m, 1.02 * crossover)


def test_compression_pays_below_the_bandwidth_of_the_docs():
    """B < 2 (1 - 1 / r) / (1 / e + 2 / u), for many ranks and no latency."""
    e, u, r, p, n = 5e9, 6.2e9, 8.0, 1024, 1 << 26
    codec = CodecCost(Line(0.0, e), Line(0.0, u), r)
    bound = 2 * (1 - 1 / r) / (1 / e + 2 / u)
    for factor, pays in ((0.95, True), (1.05, False)):
        m = Machine((0,) * p, Line(0.0, factor * bound), Line(), Line(), ((1, 1),))
        assert (alpha_beta.two_phase_s(m, n, codec) < alpha_beta.ring_s(m, n)) == pays


def test_the_native_all_reduce_is_what_was_measured():
    m = machine((0, 0))
    assert alpha_beta.native_s(m, 10) == 1e-4
    assert alpha_beta.native_s(m, (1e3 + 1e6) / 2) == pytest.approx((1e-4 + 1e-2) / 2)
    assert alpha_beta.native_s(m, 3e6) == pytest.approx(3e-2)


@pytest.mark.parametrize("line", [Line(3e-5, 2e8), Line(0.0, 1e9), Line(1e-5)])
def test_a_line_is_found_again(line):
    sizes = [8, 1 << 16, 1 << 20]
    found = fit(sizes, [line(n) + 1e-12 for n in sizes])
    np.testing.assert_allclose([found(n) for n in sizes], [line(n) for n in sizes], rtol=1e-5, atol=1e-11)


def test_no_term_of_a_fit_is_negative():
    falling, steep = fit([8, 1 << 20], [2e-3, 1e-3]), fit([1 << 16, 1 << 20], [1e-6, 1e-3])
    assert falling.bytes_per_s == math.inf and 1e-3 <= falling.start_s <= 2e-3
    assert steep.start_s == 0 and steep.bytes_per_s > 0


def test_memory_in_place_of_a_wire():
    """Two meetings, and ten quarters of a sweep over the tensor; a longer one meets more."""
    m = Machine((0,) * 4, Line(A, B), Line(), Line(0.0, G), ((1.0, 1.0),))
    n = 1 << 20
    assert alpha_beta.shared_s(m, n) == alpha_beta.long_s(m, n) == pytest.approx(2 * A + 10 / 4 * n / G)
    assert alpha_beta.shared_s(m, 2 * n) == pytest.approx(3 * A + 20 / 4 * n / G)
