"""Attention between queries and keys as a module, so that a rewrite of a network can replace it."""

import torch.nn.functional as F
from torch import Tensor, nn


class DotProductAttention(nn.Module):
    """``softmax(q k^T / sqrt(d)) v`` with dropout of its weights in training (arXiv:1706.03762, eq. 1)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None = None) -> Tensor:
        """Map queries, (n, heads, s, d), keys and values, (n, heads, t, d), to (n, heads, s, d).

        Args:
            attended: bool, true where a query may look at a key, or float, to be added to ``q k^T / sqrt(d)``; of a
                shape that (n, heads, s, t) extends.
        """
        return F.scaled_dot_product_attention(q, k, v, attended, self.dropout if self.training else 0.0)
