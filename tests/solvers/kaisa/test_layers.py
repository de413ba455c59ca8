"""Both factors of every kind of layer against explicit per-sample Jacobians, in float64.

The oracle knows nothing of inputs or patches: a row of A is read off the Jacobian of the layer's output by its own
parameters, a row of G is the gradient of one sample's own loss by the layer's output.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.layers.find import Layers, add
from hpcopt.solvers.kaisa.layers.layer import Input, Layer, Options, Sums

SAMPLES = 5


def collect(model: nn.Module, x: Tensor, loss, options: Options | None = None, uses: int = 1) -> dict[str, tuple]:
    """{layer name: (layer, A, G)}, dense, with A a mean over rows and G in terms of the loss's own terms."""
    layers = Layers(model, options or Options())
    sums = {
        layer: Sums(
            *(torch.zeros(s.matrices, symmetric.packed_length(s.size), dtype=torch.float64) for s in (layer.a, layer.g))
        )
        for layer in layers.found
    }

    def on_use(layer: Layer, inputs: Tensor, output: Tensor, first: int) -> None:
        output.register_hook(lambda g: add(layer, sums[layer], Input(inputs), g, first))

    layers.watch(lambda: True, on_use)
    model.zero_grad()
    for _ in range(uses):
        loss(model(x)).backward()
    return {
        layer.name: (
            layer,
            symmetric.unpack(s.a / s.rows, layer.a.size) if layer.a.blocks else None,
            symmetric.unpack(s.g * SAMPLES * uses, layer.g.size),
        )
        for layer, s in sums.items()
    }


def mean_loss(y: Tensor) -> Tensor:
    """A mean over samples of something that no symmetry makes simple."""
    weight = torch.linspace(0.5, 2, y[0].numel(), dtype=y.dtype).view_as(y[0])
    return (weight * y.sin() + y.square() / 3).flatten(1).sum(1).mean()


def rows_by_jacobian(module: nn.Module, x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of A, shape (groups, samples, positions, inputs), and of G, (groups, samples, positions, outputs)."""
    a, g = [], []
    parameters = dict(module.named_parameters())
    for sample in x.split(1):
        jacobian = jacrev(lambda p, s=sample: functional_call(module, p, (s,))[0])(parameters)
        y = module(sample).detach().requires_grad_()
        (own,) = torch.autograd.grad(mean_loss(y), y)
        if x.ndim > 2 and isinstance(module, nn.Linear):  # channels last: bring them to the front
            jacobian = {
                name: j.flatten(0, -1 - parameters[name].ndim - 1).transpose(0, 1) for name, j in jacobian.items()
            }
            own = own.transpose(1, 2)
        else:
            outs = y.shape[1]
            jacobian = {n: j.reshape(outs, -1, *parameters[n].shape) for n, j in jacobian.items()}
        outs = own.shape[1]
        per_group = outs // groups
        first = [k * per_group for k in range(groups)]
        weight = torch.stack([jacobian["weight"][o, :, o].flatten(1) for o in first])
        bias = [torch.stack([jacobian["bias"][o, :, o, None] for o in first])] if "bias" in jacobian else []
        a.append(torch.cat([weight, *bias], 2))
        g.append(own[0].reshape(groups, per_group, -1).transpose(1, 2))
    return torch.stack(a, 1), torch.stack(g, 1)


def gram(rows: Tensor) -> Tensor:
    flat = rows.flatten(1, 2)
    return flat.transpose(1, 2) @ flat


CONVS = [
    (nn.Conv2d(3, 4, 3, padding=1), (9, 7)),
    (nn.Conv2d(3, 4, 3, padding=1, bias=False), (8, 8)),
    (nn.Conv2d(2, 3, 3), (8, 6)),
    (nn.Conv2d(2, 3, (1, 3), padding=(2, 3)), (8, 6)),
    (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (9, 8)),
    (nn.Conv2d(2, 3, (2, 4), padding="same"), (9, 8)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (6, 7)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", stride=2), (6, 7)),
    (nn.Conv2d(3, 4, 3, stride=2, padding=1), (9, 7)),
    (nn.Conv2d(2, 3, 1), (4, 4)),
    (nn.Conv2d(4, 6, 3, groups=2, padding=1), (5, 6)),
    (nn.Conv2d(4, 8, 3, groups=4, padding=2, dilation=2, stride=(1, 2)), (5, 6)),
    (nn.Conv1d(3, 4, 4, stride=3, dilation=2, padding=2), (20,)),
    (nn.Conv1d(4, 4, 3, padding="same", groups=4), (9,)),
    (nn.Conv3d(2, 3, (2, 3, 2), padding=1, stride=(1, 2, 1), dilation=(2, 1, 1)), (5, 6, 4)),
    (nn.Conv3d(2, 2, 2, padding="same", padding_mode="replicate"), (3, 4, 3)),
]
LINEARS = [(nn.Linear(6, 4), ()), (nn.Linear(6, 4, bias=False), ()), (nn.Linear(6, 4), (3,)), (nn.Linear(20, 35), ())]


@pytest.mark.parametrize("module, shape", CONVS + LINEARS, ids=str)
def test_factors(module, shape):
    torch.manual_seed(0)
    module = copy.deepcopy(module).double()
    features = (module.in_features,) if isinstance(module, nn.Linear) else (module.in_channels,)
    size = (*shape, *features) if isinstance(module, nn.Linear) else (*features, *shape)
    x = torch.randn(SAMPLES, *size, dtype=torch.float64)
    a, g = rows_by_jacobian(module, x, getattr(module, "groups", 1))
    ((layer, factor_a, factor_g),) = collect(nn.Sequential(module), x, mean_loss).values()
    torch.testing.assert_close(factor_a, gram(a) / (a.shape[1] * a.shape[2]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(factor_g, gram(g) / SAMPLES, rtol=1e-9, atol=1e-12)
    # the matrix of the gradient is the mean over samples of each sample's sum over positions of g a^T
    expected = torch.einsum("bnso,bnsi->boi", g, a) / SAMPLES
    torch.testing.assert_close(layer.gradient(), expected, rtol=1e-9, atol=1e-12)
    layer.set_gradient(2 * expected)
    torch.testing.assert_close(layer.gradient(), 2 * expected, rtol=1e-12, atol=0.0)


def test_reduce_takes_mean_inputs_and_summed_gradients():
    torch.manual_seed(0)
    module, x = nn.Linear(6, 4).double(), torch.randn(SAMPLES, 7, 6, dtype=torch.float64)
    a, g = rows_by_jacobian(module, x)
    ((_, factor_a, factor_g),) = collect(module, x, mean_loss, Options(sharing="reduce")).values()
    torch.testing.assert_close(factor_a, gram(a.mean(2, keepdim=True)) / SAMPLES, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(factor_g, gram(g.sum(2, keepdim=True)) / SAMPLES, rtol=1e-9, atol=1e-12)


def test_every_so_manieth_position_stands_for_those_left_out():
    torch.manual_seed(0)
    options = Options(position_every=2)
    module, x = nn.Linear(6, 4).double(), torch.randn(SAMPLES, 7, 6, dtype=torch.float64)
    a, g = rows_by_jacobian(module, x)
    ((_, factor_a, factor_g),) = collect(module, x, mean_loss, options).values()
    torch.testing.assert_close(factor_a, gram(a[:, :, ::2]) / (4 * SAMPLES), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(factor_g, gram(g[:, :, ::2]) * 7 / 4 / SAMPLES, rtol=1e-9, atol=1e-12)
    conv, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(SAMPLES, 2, 8, 6, dtype=torch.float64)
    a, g = (r.unflatten(2, (8, 6))[:, :, ::2, ::2].flatten(2, 3) for r in rows_by_jacobian(conv, x))
    ((_, factor_a, factor_g),) = collect(conv, x, mean_loss, options).values()
    torch.testing.assert_close(factor_a, gram(a) / (12 * SAMPLES), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(factor_g, gram(g) * 4 / SAMPLES, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("large", ["diagonal", "blocked"])
def test_large_factors_keep_their_diagonal_or_blocks(large):
    torch.manual_seed(0)
    module, x = nn.Linear(11, 9).double(), torch.randn(SAMPLES, 11, dtype=torch.float64)
    a, g = rows_by_jacobian(module, x)
    options = Options(max_size=4, large=large)
    ((layer, factor_a, factor_g),) = collect(module, x, mean_loss, options).values()
    assert (layer.a.size, layer.g.size) == ((1, 1) if large == "diagonal" else (4, 3))
    for found, dense in ((factor_a, gram(a) / SAMPLES), (factor_g, gram(g) / SAMPLES)):
        kept = torch.block_diag(*found)
        torch.testing.assert_close(kept, dense[0] * (torch.block_diag(*torch.ones_like(found))), rtol=1e-9, atol=1e-12)


NORMS = [
    (nn.LayerNorm(6), (6,)),
    (nn.LayerNorm(6), (4, 6)),
    (nn.LayerNorm((4, 6)), (4, 6)),
    (nn.LayerNorm(6, bias=False), (4, 6)),
    (nn.GroupNorm(2, 6), (6, 3, 2)),
    (nn.BatchNorm1d(6), (6,)),
    (nn.BatchNorm2d(6), (6, 3, 2)),
    (nn.BatchNorm3d(6), (6, 3, 2, 2)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("module, shape", NORMS, ids=str)
def test_norm_blocks_are_the_exact_fisher(module, shape, training):
    """A sample's own gradient: of its own summand of the loss, the statistics of the batch taken as given."""
    torch.manual_seed(0)
    module = copy.deepcopy(module).double().train(training)
    x = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.rand_like(p))
    y = module(x)
    rows = []
    for n in range(SAMPLES):
        own = torch.autograd.grad(SAMPLES * _summand(y, n), list(module.parameters()), retain_graph=True)
        rows.append(torch.stack([g.flatten() for g in own], 1))
    expected = torch.einsum("nci,ncj->cij", torch.stack(rows), torch.stack(rows)) / SAMPLES
    ((layer, _, factor),) = collect(module, x, mean_loss).values()
    torch.testing.assert_close(factor, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layer.gradient().flatten(), torch.stack(rows).mean(0).flatten(), rtol=1e-9, atol=1e-12)


def _summand(y: Tensor, n: int) -> Tensor:
    """Sample n's part of mean_loss."""
    return mean_loss(y[n : n + 1]) / SAMPLES


def test_embedding_counts_words_but_not_the_padding():
    torch.manual_seed(0)
    module = nn.Embedding(10, 4, padding_idx=3).double()
    x = torch.randint(0, 10, (SAMPLES, 6))
    x[0, 0] = 3
    one_hot = F.one_hot(x, 10).double()
    y = module(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(mean_loss(y), y)
    kept = (x != 3).flatten()
    ((layer, factor_a, factor_g),) = collect(module, x, mean_loss).values()
    rows_a, rows_g = one_hot.flatten(0, 1)[kept], (SAMPLES * g).flatten(0, 1)[kept]
    torch.testing.assert_close(torch.diag(factor_a[:, 0, 0]), rows_a.T @ rows_a / len(rows_a))
    torch.testing.assert_close(factor_g[0], rows_g.T @ rows_g / SAMPLES)
    torch.testing.assert_close(layer.gradient()[0], rows_g.T @ rows_a / SAMPLES)


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True, **options).double()

    def forward(self, x):
        return self.inner(x, x, x)[0]


class SameAttentionByHand(nn.Module):
    """nn.MultiheadAttention's arithmetic from four nn.Linear with its weights."""

    def __init__(self, inner: nn.MultiheadAttention):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6).double() for _ in range(4))
        for i, part in enumerate((self.q, self.k, self.v)):
            part.weight.data = inner.in_proj_weight.data[6 * i : 6 * i + 6].clone()
            part.bias.data = inner.in_proj_bias.data[6 * i : 6 * i + 6].clone()
        self.o.load_state_dict(inner.out_proj.state_dict())

    def forward(self, q, k=None, v=None):
        q, k, v = self.q(q), self.k(q if k is None else k), self.v(q if v is None else v)
        q, k, v = (t.unflatten(2, (2, 3)).transpose(1, 2) for t in (q, k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("sources", ["x x x", "x m m", "x m n"])
def test_packed_attention_is_four_linear_layers(sources):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=True).double()
    by_hand = SameAttentionByHand(attention)
    xs = {name: torch.randn(SAMPLES, 4, 6, dtype=torch.float64) for name in "xmn"}
    q, k, v = (xs[name] for name in sources.split())

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x if k is q else k, x if v is q else (k if v is k else v))[0]

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = by_hand

        def forward(self, x):
            return self.inner(x, x if k is q else k, x if v is q else v)

    found = collect(Packed(), q, mean_loss)
    expected = collect(Plain(), q, mean_loss)
    assert set(found) == {"attention.in_proj", "attention.out_proj"}
    for i in (1, 2):
        stacked = torch.cat([expected[f"inner.{part}"][i] for part in "qkv"])
        torch.testing.assert_close(found["attention.in_proj"][i], stacked, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found["attention.out_proj"][i], expected["inner.o"][i], rtol=1e-9, atol=1e-12)
    stacked = torch.cat([expected[f"inner.{part}"][0].gradient() for part in "qkv"])
    torch.testing.assert_close(found["attention.in_proj"][0].gradient(), stacked, rtol=1e-9, atol=1e-12)


def test_repeated_tied_and_unused_layers():
    """A weight used twice has the rows of both uses; one that is not used has none."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(2, 2)
            self.second.weight = self.first.weight
            self.second.bias = self.first.bias

        def forward(self, x):
            return self.second(torch.relu_(self.first(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(SAMPLES, 5, dtype=torch.float64)
    inputs = []
    for module in (net.first, net.second):
        module.register_forward_pre_hook(lambda m, a: inputs.append(a[0].detach().clone()))
    found = collect(net, x, mean_loss)
    assert set(found) == {"first", "unused"}
    ones = torch.ones(SAMPLES, 1, dtype=torch.float64)
    rows = torch.cat([torch.cat([a, ones], 1) for a in inputs]).detach()
    torch.testing.assert_close(found["first"][1][0], rows.T @ rows / len(rows))
    assert not found["unused"][2].any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_once(reentrant):
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 5)).double()
            self.checkpointed = checkpointed

        def forward(self, x):
            if self.checkpointed:
                return checkpoint(self.body, x.requires_grad_(), use_reentrant=reentrant)
            return self.body(x)

    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 5, dtype=torch.float64)
    found, expected = collect(Net(True), x, mean_loss), collect(Net(False), x, mean_loss)
    for name in expected:
        for i in (1, 2):
            torch.testing.assert_close(found[name][i], expected[name][i])


def test_accumulated_micro_batches_are_one_batch():
    torch.manual_seed(0)
    module, x = nn.Linear(5, 4).double(), torch.randn(2 * SAMPLES, 5, dtype=torch.float64)
    (whole,) = collect(module, x, mean_loss).values()
    halves = iter(x.split(SAMPLES))

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, _):
            return self.inner(next(halves))

    parts = collect(Halves(), x, lambda y: mean_loss(y) / 2, uses=2)["inner"]
    torch.testing.assert_close(parts[1], whole[1])
    torch.testing.assert_close(parts[2], 2 * whole[2])  # collect counts SAMPLES terms, the whole has twice as many
