"""Random choices of coordinates, as ``hpcopt.kernels.sampling``, by torch: they are few."""

import torch
from torch import Tensor

WORD = (1 << 32) - 1
GOLDEN, MIX1, MIX2 = 0x9E3779B9, 0x7FEB352D, 0x846CA68B


def uniform(index: Tensor, seed: int) -> Tensor:
    """Float64 in [0, 1) of 32 random bits for indices, int64: uint32 arithmetic in the low halves of int64."""
    h = (index * GOLDEN + (seed & WORD)) & WORD
    h = ((h ^ (h >> 16)) * MIX1 + (seed >> 32)) & WORD
    h = ((h ^ (h >> 15)) * MIX2) & WORD
    return (h ^ (h >> 16)).double() * 2.0**-32


def one_in_each(n: int, k: int, seed: int, first: int, device: torch.device) -> Tensor:
    """Places, int64, (k,), as ``hpcopt.kernels.sampling.one_in_each`` draws them."""
    j = torch.arange(k + 1, device=device)
    dice = uniform((first + j) & WORD, seed)
    edges = j * n // k
    shift = (dice[k] * n).long()
    places = edges[:-1] + (dice[:k] * (edges[1:] - edges[:-1])).long() + shift
    return torch.where(places >= n, places - n, places)
