"""Random choices of coordinates, as ``hpcopt.kernels.sampling``, by torch: they are few."""

import torch
from torch import Tensor

WORD = (1 << 32) - 1
GOLDEN, MIX1, MIX2 = 0x9E3779B9, 0x7FEB352D, 0x846CA68B


def uniform(index: Tensor, seed: int | Tensor) -> Tensor:
    """Float64 in [0, 1) of 32 random bits for indices, int64: uint32 arithmetic in the low halves of int64. Indices may
    have a seed each.
    """
    h = (index * GOLDEN + (seed & WORD)) & WORD
    h = ((h ^ (h >> 16)) * MIX1 + (seed >> 32)) & WORD
    h = ((h ^ (h >> 15)) * MIX2) & WORD
    return (h ^ (h >> 16)).double() * 2.0**-32


def one_in_each(n: int, k: int, seed: int | Tensor, first: Tensor) -> Tensor:
    """Places, int64, (rows, k), as ``hpcopt.kernels.sampling.one_in_each`` draws each row's; first and, if they differ,
    seed have the shape (rows, 1).
    """
    j = torch.arange(k + 1, device=first.device)
    dice = uniform((first + j) & WORD, seed)
    edges = j * n // k
    shift = (dice[:, k:] * n).long()
    places = edges[:-1] + (dice[:, :k] * (edges[1:] - edges[:-1])).long() + shift
    return torch.where(places >= n, places - n, places)
