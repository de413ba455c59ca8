"""Nodes into classes: what the trainer is promised, scores against scikit-learn's, and clusters."""

import itertools

import numpy as np
import pytest
import torch

from hpcopt.errors import DataError, JobError
from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig
from hpcopt.shapes.context import Context
from hpcopt.testing.workload import check_workload
from hpcopt.workloads.node_classification import NodeClassificationConfig
from tests.graph_data import write_graph


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("graph") / "communities", nodes=300)


def test_the_whole_graph_keeps_the_promises(data):
    check_workload(NodeClassificationConfig(data=data, model=GcnConfig(hidden=(8,))))


def test_some_nodes_of_it_do(data):
    check_workload(NodeClassificationConfig(data=data, batch=11, model=GraphSageConfig(hidden=(8,))), ranks=(1, 3))


def test_clusters_do(data):
    config = NodeClassificationConfig(data=data, batch=11, clusters=9, model=GatConfig(hidden=(8,), heads=2))
    check_workload(config, ranks=(1, 2))


def test_clusters_are_all_seen_in_an_epoch(data):
    workload = NodeClassificationConfig(data=data, batch=10, clusters=9).build(Context())
    batches = list(itertools.islice(workload.train_batches(0, 1, 0), workload.steps_per_epoch))
    assert len(batches) > 1 and all(len(batch.graph) < 300 for batch in batches)
    assert sum(map(len, batches)) <= workload.train_samples
    assert all(torch.equal(b.features.norm(dim=1).round(), torch.ones(len(b.graph))) for b in batches)


def test_scores_are_those_of_scikit_learn(data):
    from sklearn.metrics import f1_score

    workload = NodeClassificationConfig(data=data, model=GcnConfig(hidden=(8,))).build(Context())
    batch = next(workload.test_batches(0, 1))
    with torch.no_grad():
        found = workload.model(batch.graph, batch.features)[batch.targets].argmax(1)
        scores = workload.finish({k: v.double() for k, v in workload.score(workload.model, batch).items()})
    assert scores["test_macro_f1"] == pytest.approx(f1_score(batch.labels, found, average="macro"))
    assert scores["test_accuracy"] == pytest.approx(f1_score(batch.labels, found, average="micro"))


def test_parts_do_not_meet(data):
    seen = []
    for part in ("test", "validation"):
        workload = NodeClassificationConfig(data=data, evaluate_on=part).build(Context())
        seen += [next(workload.train_batches(0, 1, 0)).targets, next(workload.test_batches(0, 1)).targets]
    train, test, again, validation = (set(nodes.tolist()) for nodes in seen)
    assert train == again and not train & test and not train & validation and not test & validation


def test_what_cannot_be(data, tmp_path):
    with pytest.raises(DataError, match="prepare it with"):
        NodeClassificationConfig(data=tmp_path / "wordnet").build(Context())
    with pytest.raises(JobError, match="300 nodes cannot be cut into 301"):
        NodeClassificationConfig(data=data, clusters=301).build(Context())


def test_a_network_may_be_left_to_its_solver(data):
    model = NodeClassificationConfig(data=data, allocate=False).build(Context()).model
    assert all(p.is_meta for p in model.parameters())
    assert np.prod(model.get_parameter("layers.0.linear.weight").shape) == 512 * 256
