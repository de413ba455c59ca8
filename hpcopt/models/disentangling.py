"""How well non-negative factors come apart: scores of codes against attributes, trained on or not."""

import torch
from torch import Tensor


def auc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve of every column.

    Args:
        scores: shape (n, r).
        positive: shape (n,), bool, with both values in it.

    Returns:
        Shape (r,), float64: the chance that a positive sample has the larger score than a negative one, ties counting
        one half.
    """
    negative = scores[~positive].double().T.contiguous().sort(dim=1).values
    found = scores[positive].double().T.contiguous()
    below = torch.searchsorted(negative, found, right=False) + torch.searchsorted(negative, found, right=True)
    return below.double().mean(1) / (2 * negative.shape[1])


def best_factor_auc(codes: Tensor, labels: Tensor) -> Tensor:
    """For every label that occurs, the AUC of the one factor that tells it best from the rest, shape (labels,)."""
    return torch.stack([auc(codes, labels == label).max() for label in torch.unique(labels)])


def sparsity(codes: Tensor) -> float:
    """Share of codes that are exactly zero."""
    return float((codes == 0).double().mean())


def reconstruction_error(features: Tensor, codes: Tensor, basis: Tensor) -> float:
    """|H - S B|^2 / |H|^2."""
    return float((features - codes @ basis).square().sum() / features.square().sum())
