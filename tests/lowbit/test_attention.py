"""Attention in few bits: torch's where nothing is rounded, with its masks and shapes; both products have their bits."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.lowbit import QuantizedConfig, added_variance
from hpcopt.lowbit.attention import QuantizedAttention, QuantizedMultiheadAttention
from hpcopt.lowbit.layers import QuantizedLayer, QuantizedLinear
from hpcopt.lowbit.products import BatchedProduct, Bits
from hpcopt.models.attention import DotProductAttention
from hpcopt.models.bert import BertConfig
from hpcopt.models.causal.transformer import TransformerConfig


@pytest.fixture
def exact(monkeypatch):
    """No operand is rounded, and no gradient."""
    monkeypatch.setattr("hpcopt.lowbit.layers.on_grid", lambda x, bits, whole=False: x)
    return QuantizedConfig(gradient="exact")


def heads(*shape: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=draw) for _ in range(3)]


MASKS = {
    "none": {},
    "later": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
    "padding": {"key_padding_mask": torch.arange(5)[None] >= torch.tensor([[5], [2], [3]])},
    "by head": {"attn_mask": torch.randn(3 * 2, 5, 5, generator=torch.Generator().manual_seed(1))},
    "both": {
        "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.arange(5)[None] >= torch.tensor([[5], [2], [3]]),
    },
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("settings", [{"batch_first": True}, {"bias": False}], ids=["batch first", "no bias"])
def test_without_rounding_it_is_torchs(mask, settings, exact):
    torch.manual_seed(0)
    old = nn.MultiheadAttention(8, 2, **settings)
    new = exact.apply(nn.Sequential(copy.deepcopy(old)))[0]
    assert type(new) is QuantizedMultiheadAttention and list(new.state_dict()) == list(old.state_dict())
    inputs = heads(3, 5, 8) if old.batch_first else heads(5, 3, 8)
    for expected, found in zip(old(*inputs, **mask), new(*inputs, **mask), strict=True):
        torch.testing.assert_close(found, expected)
    apart = {"need_weights": True, "average_attn_weights": False, **mask}
    torch.testing.assert_close(new(*inputs, **apart)[1], old(*inputs, **apart)[1])
    assert new(*inputs, need_weights=False, **mask)[1] is None


def test_one_sentence_alone(exact):
    torch.manual_seed(0)
    old = nn.MultiheadAttention(8, 2)
    new = exact.apply(nn.Sequential(copy.deepcopy(old)))[0]
    inputs, mask = heads(5, 8), torch.arange(5) > 3
    for expected, found in zip(old(*inputs, mask), new(*inputs, mask), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mask", [{}, {"attn_mask": torch.zeros(0, 5, 5)}], ids=["none", "by head"])
def test_a_share_without_samples(mask):
    new = QuantizedConfig().apply(nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True)))[0]
    x = torch.zeros(0, 5, 8, requires_grad=True)
    out, weights = new(x, x, x, **mask)
    assert out.shape == x.shape and weights.shape == (0, 5, 5)
    out.sum().backward()
    assert not any(p.grad.any() for p in new.parameters())


@pytest.mark.parametrize("attended", [None, torch.ones(1, 1, 1, 4, dtype=torch.bool).triu(-1), torch.randn(4, 4)])
def test_attention_by_itself(attended, exact):
    old = DotProductAttention(0.0)
    new = exact.apply(nn.Sequential(copy.deepcopy(old)))[0]
    assert type(new) is QuantizedAttention
    q, k, v = heads(2, 3, 4, 6)
    torch.testing.assert_close(new(q, k, v, attended), F.scaled_dot_product_attention(q, k, v, attended))


def test_weights_are_dropped_in_training_only():
    layer = QuantizedAttention(DotProductAttention(0.5), Bits())
    q, k, v = heads(2, 2, 4, 3)
    layer.train()
    assert not torch.equal(layer(q, k, v), layer(q, k, v))
    layer.eval()
    assert torch.equal(layer(q, k, v), layer(q, k, v))


def test_both_gradients_of_two_activations_come_from_one_copy():
    """Each has the mean of the exact one, and integers that have grids of their own change nothing."""
    layer = type("Layer", (QuantizedLayer,), {})()
    layer.bits = Bits(gradient="psq", backward=8)
    x, y = (torch.randint(0, 256, (2, 3, 4)).float() for _ in range(2))
    for operand in (x, y):
        operand[:, 0, :2] = torch.tensor([0.0, 255.0])
        operand.requires_grad_()
    upstream = torch.randint(0, 256, (2, 3, 3)).float()
    upstream[:, 0, :2] = torch.tensor([0.0, 255.0])
    layer.product(BatchedProduct(), x, y, weights=False).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ y.detach(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(y.grad, upstream.mT @ x.detach(), rtol=1e-5, atol=1e-2)


def bert() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    ids = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(8)[None] < torch.tensor([[8], [5], [6]])
    return BertConfig(size="tiny", dropout=0.0).build(50), (ids, ids % 2, mask, torch.arange(0, 24, 3))


def causal() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    ids = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    return TransformerConfig(width=8, heads=2).build(50, 8), (ids,)


@pytest.mark.parametrize("made", [bert, causal])
def test_attention_of_a_transformer_does_not_stay_exact(made, monkeypatch):
    """In 8 bits it is near the exact network; in 2 it is not, in evaluation either; gradients flow to every weight."""
    torch.manual_seed(0)
    old, inputs = made()

    def out(bits: int) -> torch.Tensor:
        found = QuantizedConfig(forward_bits=bits).apply(copy.deepcopy(old)).eval()(*inputs)
        return (found[0] if isinstance(found, tuple) else found).detach()

    expected = old.eval()(*inputs)
    expected = (expected[0] if isinstance(expected, tuple) else expected).detach()
    scale = float(expected.std())
    assert float((out(8) - expected).abs().max()) < 0.2 * scale < float((out(2) - expected).abs().max())

    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    monkeypatch.setattr(F, "multi_head_attention_forward", None)
    new = QuantizedConfig(bits=4).apply(old).train()
    attentions = [m for m in new.modules() if isinstance(m, QuantizedAttention | QuantizedMultiheadAttention)]
    assert len(attentions) == 2
    with added_variance(new) as added:
        out = new(*inputs)
        sum(part.square().mean() for part in (out if isinstance(out, tuple) else (out,))).backward()
    assert all(p.grad is not None for p in new.parameters())
    products = 5 if made is causal else 2
    assert [len(added[n]) for n, m in new.named_modules() if m in attentions] == [products] * 2


def test_what_has_other_keys_stays():
    odd = nn.ModuleList([nn.MultiheadAttention(8, 2, kdim=4), nn.MultiheadAttention(8, 2, add_bias_kv=True)])
    odd.append(nn.Linear(2, 2))
    new = QuantizedConfig().apply(odd)
    assert [type(m) for m in new] == [nn.MultiheadAttention] * 2 + [QuantizedLinear]
