"""Curves and scores: what is known of a linear network, and of rankings that are right, wrong or none."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.analysis.explain import explain
from hpcopt.analysis.explain.curves import POINTS, area, curves, per_place, random_curves
from hpcopt.analysis.explain.question import Question, Settings
from hpcopt.analysis.explain.scores import SCORES, _Plain, scores


@pytest.fixture
def question():
    """A network of one number, the sum of the inputs with weights 4, 3, 2, 1."""
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        model.bias.zero_()
    x = torch.ones(2, 4)
    return Question(model, x, torch.zeros(2, dtype=torch.int64), torch.zeros(1, 4), torch.arange(4)[None])


def test_curves_of_the_true_ranking(question):
    found = curves(question, question.model.weight.detach().expand(2, 4), torch.Generator())
    each = (POINTS - 1) // 4
    assert found.deletion[0, ::each].tolist() == [10, 6, 3, 1, 0]
    assert found.insertion[0, ::each].tolist() == [0, 4, 7, 9, 10]
    assert torch.allclose(area(found.deletion), 10 - area(found.insertion))


def test_random_rankings_lie_between_the_best_and_the_worst(question):
    weights = question.model.weight.detach().expand(2, 4)
    best, worst = (area(curves(question, sign * weights, torch.Generator()).deletion) for sign in (1, -1))
    between = area(random_curves(question, torch.Generator().manual_seed(1)).deletion)
    assert (best < between).all() and (between < worst).all()


def test_places_that_count_the_same_come_in_any_order(question):
    """Not from the first on: a method that says nothing must be no better than chance on images with a margin."""
    found = {
        tuple(curves(question, torch.zeros(2, 4), torch.Generator().manual_seed(seed)).deletion[0].tolist())
        for seed in range(6)
    }
    assert len(found) > 1


def test_places_are_pixels_tokens_or_columns():
    assert per_place(torch.ones(2, 3, 4, 5)).shape == (2, 20)
    assert per_place(torch.ones(2, 3, 4)).tolist() == [[4.0] * 3] * 2
    assert per_place(torch.ones(2, 3)).shape == (2, 3)


def test_images_lose_all_channels_of_a_place():
    seen = []

    class Seer(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x.sum((2, 3))

    x = torch.ones(1, 2, 2, 2)
    q = Question(Seer(), x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2))
    curves(q, torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.Generator())
    assert all(torch.equal(each[:, 0], each[:, 1]) for each in seen)
    assert seen[2 * (POINTS - 1) // 4][0, 0].flatten().tolist() == [1, 1, 1, 0]  # the place of 4 has gone


def test_scores_of_a_linear_network():
    """Its explanation is the truth: perfectly faithful; one that is its opposite is perfectly wrong."""
    pytest.importorskip("quantus")
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(12, 3)), torch.randn(1, 12)
    q = Question(model, x, torch.tensor([1]), torch.zeros(1, 12), torch.arange(12)[None], settings=Settings(steps=4))
    counts = explain("integrated", model, x, 1, settings=q.settings)
    assert _Plain(q).without(x.numpy(), np.array([[3, 5]]))[0, [3, 4, 5]].tolist() == [0, float(x[0, 4]), 0]
    found = scores("integrated", q, counts, 3)
    assert found.keys() == SCORES.keys()
    assert found == scores("integrated", q, counts, 3)
    assert found["faithfulness"] > 0.9
    assert scores("integrated", q, -counts, 3)["faithfulness"] < -0.9
    assert abs(found["randomisation"]) < 0.9
    assert 0 < found["robustness"] < 1
    assert scores("integrated", q, (counts == counts.max()).float(), 3)["complexity"] > found["complexity"]
    nothing = scores("integrated", q, torch.zeros_like(counts), 3)
    assert all(value != value for value in nothing.values())
