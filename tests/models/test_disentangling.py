"""Scores against scikit-learn and against values known beforehand."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from hpcopt.models.disentangling import auc, best_factor_auc, reconstruction_error, sparsity


def test_auc_is_that_of_scikit_learn_with_ties():
    torch.manual_seed(0)
    scores, positive = torch.randint(5, (80, 3)).float(), torch.rand(80) < 0.3
    expected = [roc_auc_score(positive.numpy(), scores[:, k].numpy()) for k in range(3)]
    assert auc(scores, positive).tolist() == pytest.approx(expected)


def test_best_factors():
    labels = torch.arange(3).repeat(10)
    codes = torch.nn.functional.one_hot(labels, 3).float()
    assert best_factor_auc(codes, labels).tolist() == [1, 1, 1]
    assert best_factor_auc(codes[:, :1], labels).tolist() == [1, 0.25, 0.25]


def test_sparsity_and_reconstruction():
    codes, basis = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.eye(2)
    assert sparsity(codes) == 0.75
    assert reconstruction_error(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), codes, basis) == 0.5
