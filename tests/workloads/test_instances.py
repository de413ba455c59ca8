"""Instances are drawn by seed and index, their answers are right, and the workloads keep the contract."""

import numpy as np
import pytest

from hpcopt.errors import JobError
from hpcopt.shapes.context import Context
from hpcopt.testing.workload import check_workload
from hpcopt.workloads import ArithmeticTreesConfig, GraphDistanceConfig, ListReductionConfig
from hpcopt.workloads.arithmetic_trees import value
from hpcopt.workloads.graph_distance import OPEN, distance
from hpcopt.workloads.list_reduction import DIGITS, answer

CONFIGS = [ListReductionConfig, ArithmeticTreesConfig, GraphDistanceConfig]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_the_contract(config):
    check_workload(config(batch=7, train=21, test=10, hidden=4), ranks=(1, 3), steps=4)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_more_in_a_batch_than_there_are_is_refused(config):
    with pytest.raises(JobError, match=r"batch = 9, but train = 8"):
        config(batch=9, train=8).build(Context())


def test_lists_trees_and_graphs_have_the_answers_that_they_say():
    lists, trees, graphs = (config().build(Context(run_seed=5)) for config in CONFIGS)
    for index in range(30):
        one = lists.instance(0, index)
        tokens = one.inputs[0].numpy()
        assert answer(int(tokens[0]) - DIGITS, tokens[1:]) == int(one.target[0])
        leaves, inner = trees.instance(0, index).inputs
        assert value(leaves.tolist(), inner.tolist()) == int(trees.instance(0, index).target[0])
        marks, edges = graphs.instance(0, index).inputs
        n = len(marks)
        roads = np.zeros((n, n))
        for a, kind, b in edges.tolist():
            roads[a, b] += kind == OPEN
        hops = [k for k in range(1, n) if np.linalg.matrix_power(roads, k)[0, -1] > 0]
        assert min(hops, default=n) == min(distance(n, edges.tolist()), n)
        assert min(*hops, 3, 3) - 1 == int(graphs.instance(0, index).target[0])


def test_splits_and_indices_are_drawn_apart():
    drawn = [ListReductionConfig().build(Context()).instance(split, index) for split in (0, 1) for index in range(20)]
    assert len({tuple(one.inputs[0].tolist()) for one in drawn}) > 35
