"""Attention in few bits: ``q k^T`` and the product of the weights with v, and the projections of torch's own layer.

The softmax between the products is exact, and so are masks. Both operands of a product are activations: each sample's
on a grid of its own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.lowbit.layers import QuantizedLayer, QuantizedLinear
from hpcopt.lowbit.products import BatchedProduct, Bits, MatrixProduct
from hpcopt.models.attention import DotProductAttention


class QuantizedAttention(QuantizedLayer, DotProductAttention):
    """A ``DotProductAttention`` in few bits."""

    def __init__(self, old: DotProductAttention, bits: Bits) -> None:
        super().__init__(old.dropout)
        self.bits = bits

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None = None) -> Tensor:
        """As the exact layer."""
        added = None if attended is None else _added(attended, q.dtype, where=False)
        return attention(self, q, k, v, added, self.dropout)[0]


class QuantizedMultiheadAttention(QuantizedLayer, nn.MultiheadAttention):
    """A ``torch.nn.MultiheadAttention`` in few bits, of queries, keys and values of one width."""

    def __init__(self, old: nn.MultiheadAttention, bits: Bits) -> None:
        """Take over a layer's parameters."""
        biased = old.in_proj_bias is not None
        super().__init__(old.embed_dim, old.num_heads, old.dropout, biased, batch_first=old.batch_first, device="meta")
        self.in_proj_weight, self.in_proj_bias, self.bits = old.in_proj_weight, old.in_proj_bias, bits
        self.out_proj = QuantizedLinear(old.out_proj, bits)  # type: ignore[assignment]

    @staticmethod
    def fits(old: nn.MultiheadAttention) -> bool:
        """Whether this can stand for a layer: no other widths of keys and values, and no added keys."""
        return old.in_proj_weight is not None and old.bias_k is None and not old.add_zero_attn

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the exact layer; ``is_causal`` is a hint that is of no use here."""
        if query.dim() == 2:
            padding, batch = None if key_padding_mask is None else key_padding_mask[None], 0 if self.batch_first else 1
            q, k, v = (x.unsqueeze(batch) for x in (query, key, value))
            out, weights = self.forward(q, k, v, padding, need_weights, attn_mask, average_attn_weights)
            return out.squeeze(batch), None if weights is None else weights[0]
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        context, weights = attention(self, q, k, v, self._mask(attn_mask, key_padding_mask, q), self.dropout)
        out = self.out_proj(context.transpose(1, 2).flatten(2))
        told = weights.mean(1) if average_attn_weights else weights
        return out if self.batch_first else out.transpose(0, 1), told if need_weights else None

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values by heads, each (n, heads, s, d)."""
        found = []
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        for x, weight, bias in zip(inputs, self.in_proj_weight.chunk(3), biases, strict=True):
            out = self.product(MatrixProduct(), x, weight)
            out = out if bias is None else out + bias
            found.append(out.view(*out.shape[:2], self.num_heads, self.head_dim).transpose(1, 2))
        return found

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to ``q k^T``: torch's masks are true where nothing may be looked at, or are added."""
        total = None
        if attn_mask is not None:
            total = _added(attn_mask, q.dtype, where=True)
            total = total if total.dim() == 2 else total.view(len(q), self.num_heads, *total.shape[1:])
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q.dtype, where=True)[:, None, None]
            total = padding if total is None else total + padding
        return total


def attention(
    layer: QuantizedLayer, q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Values that were looked at, (n, heads, s, d), and the weights, (n, heads, s, t), in few bits.

    Args:
        layer: whose products these are.
        q: queries, (n, heads, s, d).
        k: keys, (n, heads, t, d).
        v: values, (n, heads, t, d).
        added: to ``q k^T / sqrt(d)`` before the softmax.
        dropout: of weights, in training.
    """
    scores = layer.product(BatchedProduct(), q / math.sqrt(q.shape[-1]), k, weights=False)
    weights = F.dropout(torch.softmax(scores if added is None else scores + added, -1), dropout, layer.training)
    return layer.product(BatchedProduct(), weights.to(v.dtype), v.mT, weights=False), weights


def _added(mask: Tensor, dtype: torch.dtype, where: bool) -> Tensor:
    """A mask as what is added to ``q k^T``: minus infinity where a bool is ``where``."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask if where else ~mask, -math.inf)
