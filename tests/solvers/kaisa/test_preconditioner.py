"""Preconditioned gradients against dense solves with explicit factors, and what K-FAC promises on one rank."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.world import alone
from hpcopt.solvers.kaisa import symmetric
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.settings import KaisaSettings
from tests.solvers.kaisa.test_layers import CONVS, LINEARS, NORMS, SAMPLES, gram, mean_loss, rows_by_jacobian

DAMPING = 0.2


def preconditioned(model, x, loss=mean_loss, kl_clip=None, damping=DAMPING, **settings):
    """{parameter name: gradient} after one step, and the preconditioner."""
    kaisa = Kaisa(model, alone(), damping=damping, kl_clip=kl_clip, **settings)
    model.zero_grad()
    loss(model(x)).backward()
    kaisa.step()
    return {n: p.grad.clone() for n, p in model.named_parameters()}, kaisa


def example(module, shape):
    module = copy.deepcopy(module).double()
    features = (module.in_features,) if isinstance(module, nn.Linear) else (module.in_channels,)
    size = (*shape, *features) if isinstance(module, nn.Linear) else (*features, *shape)
    return module, torch.randn(SAMPLES, *size, dtype=torch.float64)


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
@pytest.mark.parametrize("module, shape", CONVS + LINEARS, ids=str)
def test_against_dense_solve(module, shape, method):
    torch.manual_seed(0)
    module, x = example(module, shape)
    a, g = rows_by_jacobian(module, x, getattr(module, "groups", 1))
    w = torch.einsum("bnso,bnsi->bio", g, a) / SAMPLES  # transposed: inputs first, as kron(A, G) has it
    factor_a, factor_g = gram(a) / (a.shape[1] * a.shape[2]), gram(g) / SAMPLES
    eye_a, eye_g = (torch.eye(f.shape[1], dtype=f.dtype) for f in (factor_a, factor_g))
    expected = []
    mean_a, mean_g = (f.diagonal(dim1=1, dim2=2).mean() for f in (factor_a, factor_g))
    pi = (mean_a / mean_g).sqrt()
    for k in range(len(w)):
        if method == "eigen":
            dense = torch.kron(factor_a[k], factor_g[k]) + DAMPING * torch.kron(eye_a, eye_g)
        else:
            split = DAMPING**0.5
            dense = torch.kron(factor_a[k] + split * pi * eye_a, factor_g[k] + split / pi * eye_g)
        expected.append(torch.linalg.solve(dense, w[k].flatten()).view(w[k].shape).T)
    _, kaisa = preconditioned(module, x, method=method)
    torch.testing.assert_close(kaisa.layers.found[0].gradient(), torch.stack(expected), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("method", ["cholesky", "low_rank"])
def test_a_damping_over_a_layers_curvature_does_not_ask_how_many_terms_there_are(method):
    """G goes with the number of terms, so P with its inverse: all of it, norms too, if the damping follows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 3)).double()
    x, found = torch.randn(SAMPLES, 4, 6, dtype=torch.float64), []
    settings = {"kl_clip": None, "damping": 0.3, "damping_of": "layer", "method": method, "rank": 2}
    for terms in (SAMPLES, 4 * SAMPLES):
        kaisa = Kaisa(model := copy.deepcopy(net), alone(), **settings)
        mean_loss(model(x)).backward()
        kaisa.step(terms)
        found.append([p.grad * terms for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_damping_over_a_layers_curvature_is_one_of_the_losss_curvature():
    torch.manual_seed(0)
    module, x = example(nn.Linear(6, 4), (3,))
    _, kaisa = preconditioned(module, x, damping=0.3, damping_of="layer")
    average = kaisa._averages.of[0]
    means = [symmetric.unpack(f, n)[0].diagonal().mean().item() for f, n in ((average.a, 7), (average.g, 4))]
    other, _ = preconditioned(module, x, damping=0.3 * means[0] * means[1])
    torch.testing.assert_close(module.weight.grad, other["weight"])


def test_no_curvature_is_damped_as_if_it_were_one():
    layer = nn.Linear(3, 2)
    kaisa = Kaisa(layer, alone(), damping=0.25, damping_of="layer", kl_clip=None)
    (layer(torch.ones(4, 3)) * 0).sum().backward()
    layer.weight.grad.fill_(1.0)
    kaisa.step()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("other", [{"method": "eigen"}, {"method": "ekfac"}, {"damping_every": 5}], ids=str)
def test_what_has_no_damping_by_layer_says_so(other):
    with pytest.raises(ValidationError, match='damping_of = "layer" goes with cholesky and low_rank'):
        KaisaSettings(damping_of="layer", **other)


@pytest.mark.parametrize("method", ["cholesky", "eigen"])
@pytest.mark.parametrize("module, shape", NORMS, ids=str)
def test_norms_against_the_exact_fisher(module, shape, method):
    torch.manual_seed(0)
    module = copy.deepcopy(module).double().train()
    x = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    y = module(x)
    rows = []
    for n in range(SAMPLES):
        own = torch.autograd.grad(mean_loss(y[n : n + 1]), list(module.parameters()), retain_graph=True)
        rows.append(torch.stack([g.flatten() for g in own], 1))
    rows = torch.stack(rows)  # samples, channels, scale and bias
    fisher = torch.einsum("nci,ncj->cij", rows, rows) / SAMPLES + DAMPING * torch.eye(rows.shape[2], dtype=rows.dtype)
    expected = torch.linalg.solve(fisher, rows.mean(0))
    found, _ = preconditioned(module, x, method=method)
    torch.testing.assert_close(torch.stack([g.flatten() for g in found.values()], 1), expected, rtol=1e-6, atol=1e-10)


def test_one_sample_of_one_position_is_the_exact_fisher_block():
    """There the Kronecker product is no approximation: (F + damping)^-1 gradient with F from the Jacobian itself."""
    torch.manual_seed(0)
    module, x = nn.Linear(4, 3).double(), torch.randn(1, 4, dtype=torch.float64)
    grads = torch.autograd.grad(mean_loss(module(x)), list(module.parameters()))
    flat = torch.cat([g.flatten() for g in grads])
    expected = torch.linalg.solve(torch.outer(flat, flat) + DAMPING * torch.eye(len(flat), dtype=flat.dtype), flat)
    found, _ = preconditioned(module, x, method="eigen")
    torch.testing.assert_close(torch.cat([g.flatten() for g in found.values()]), expected, rtol=1e-6, atol=1e-12)


class Net(nn.Module):
    """A little of everything, with an in-place activation."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 8)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 9), nn.LayerNorm(9), nn.Tanh())
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(9, 5)

    def forward(self, x):
        x = self.words(x)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.body(self.conv(x)))


def net_and_words(samples: int = 12, dtype: torch.dtype = torch.float64):
    torch.manual_seed(1)
    return Net().to(dtype), torch.randint(0, 7, (samples, 4))


def test_duplicated_samples_change_nothing():
    net, x = net_and_words()
    once, _ = preconditioned(net, x)
    twice, _ = preconditioned(copy.deepcopy(net), torch.cat([x, x]))
    for name in once:
        torch.testing.assert_close(once[name], twice[name], rtol=1e-9, atol=1e-12)


def test_linear_gaussian_step_is_the_natural_gradient():
    """Squared error has the Fisher A (x) I: from anywhere, one undamped step of length 1 ends at least squares."""
    torch.manual_seed(0)
    samples, model = 50, nn.Linear(6, 3).double()
    x, target = torch.randn(samples, 6, dtype=torch.float64), torch.randn(samples, 3, dtype=torch.float64)
    kaisa = Kaisa(model, alone(), damping=1e-14, kl_clip=None)
    unit = torch.linalg.qr(torch.randn(samples, 3, dtype=torch.float64)).Q * samples**0.5  # residuals of covariance I
    ((model(x) * unit).sum() / samples).backward()
    model.zero_grad()
    with kaisa.paused():
        ((model(x) - target).square().sum() / (2 * samples)).backward()
    kaisa.step(terms=samples)
    with torch.no_grad():
        for p in model.parameters():
            p -= p.grad
    ones = torch.cat([x, torch.ones(samples, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(ones, target).solution.T
    torch.testing.assert_close(
        torch.cat([model.weight, model.bias[:, None]], 1).detach(), solution, rtol=1e-6, atol=1e-6
    )


def test_sampled_targets_give_the_fisher_of_the_model():
    """Logits p: the gradients of drawn targets have covariance diag(p) - p p^T; parameters' gradients stay alone."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4).double(), torch.zeros(40000, 3, dtype=torch.float64)
    kaisa = Kaisa(model, alone(), fisher="sampled", kl_clip=None)
    outputs = model(x)
    kaisa.sample(outputs, "categorical", generator=torch.Generator().manual_seed(0))
    assert model.weight.grad is None
    outputs.square().mean().backward()
    kaisa.step()
    p = outputs[0].detach().softmax(0)
    from hpcopt.solvers.kaisa import symmetric

    found = symmetric.unpack(kaisa._averages.of[0].g, 4)[0]
    torch.testing.assert_close(found, torch.diag(p) - torch.outer(p, p), rtol=0.0, atol=0.01)


def test_a_bad_step_leaves_the_averages_alone():
    net, x = net_and_words()
    good, _ = preconditioned(net, x)
    kaisa = Kaisa(net, alone(), damping=DAMPING, kl_clip=None, factor_every=1, inverse_every=1)
    for factor in (1.0, float("inf"), 1.0):
        net.zero_grad()
        (mean_loss(net(x)) * factor).backward()
        kaisa.step()
    assert kaisa.rejected == len(kaisa.layers.found)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, good[name], rtol=1e-9, atol=1e-12)


def test_scaled_loss_is_unscaled():
    net, x = net_and_words()
    good, _ = preconditioned(net, x)
    kaisa = Kaisa(net, alone(), damping=DAMPING, kl_clip=None)
    net.zero_grad()
    (mean_loss(net(x)) * 1024).backward()
    for p in net.parameters():
        p.grad /= 1024
    kaisa.step(grad_scale=1024)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, good[name], rtol=1e-9, atol=1e-12)


def test_kl_clip_bounds_the_divergence_and_graft_keeps_norms():
    net, x = net_and_words()
    raw, _ = preconditioned(net, x, skip=(".",))
    free, _ = preconditioned(net, x)
    clipped, _ = preconditioned(net, x, kl_clip=1e-4, damping=DAMPING)
    divergence = sum((clipped[n] * raw[n]).sum() for n in raw)
    scale = clipped["head.weight"] / free["head.weight"]
    nu = float(scale.mean())
    torch.testing.assert_close(scale, torch.full_like(scale, nu))
    assert float(divergence / nu * nu**2) == pytest.approx(1e-4, rel=1e-6)
    grafted, kaisa = preconditioned(net, x, graft=True)
    joint = lambda g: torch.cat([g["head.weight"].flatten(), g["head.bias"]]).norm()  # noqa: E731
    torch.testing.assert_close(joint(grafted), joint(raw))
    assert kaisa.cosines["head"] < 0.999


def test_unused_and_frozen_and_unknown_layers_are_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.cell = nn.GRUCell(3, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.cell(self.frozen(self.used(x)))

    torch.manual_seed(0)
    model = Odd()
    kaisa = Kaisa(model, alone(), damping=DAMPING)
    mean_loss(model(torch.randn(4, 3))).backward()
    raw = model.cell.weight_ih.grad.clone()
    kaisa.step()
    assert model.unused.weight.grad is None
    assert torch.equal(model.cell.weight_ih.grad, raw)
    assert [layer.name for layer in kaisa.layers.found] == ["used", "unused"]
    assert "GRUCell" in kaisa.layers.skipped["cell"]


def test_singular_factors_are_caught_and_counted():
    model = nn.Linear(40, 30)
    x = torch.full((4, 40), 1e4)
    found, kaisa = preconditioned(model, x, damping=1e-12)
    assert kaisa.failures.more_damping > 0
    assert all(torch.isfinite(g).all() for g in found.values())


@pytest.mark.parametrize("narrow", ["factor_dtype", "inverse_dtype"])
def test_bfloat16_storage_stays_close(narrow):
    net, x = net_and_words(dtype=torch.float32)
    exact, _ = preconditioned(net, x)
    rounded, _ = preconditioned(net, x, **{narrow: "bfloat16"})
    exact, rounded = (torch.cat([g.flatten() for g in found.values()]) for found in (exact, rounded))
    assert (exact - rounded).norm() <= 0.1 * exact.norm()


def test_subsampled_statistics_are_those_of_the_samples_kept():
    net, x = net_and_words()
    found, _ = preconditioned(net, x, batch_every=3)
    kaisa = Kaisa(net, alone(), damping=DAMPING, kl_clip=None)
    mean_loss(net(x[::3])).backward()
    net.zero_grad()
    with kaisa.paused():
        mean_loss(net(x)).backward()
    kaisa.step()
    for name in ("conv.weight", "head.bias", "body.3.weight", "attention.in_proj_weight", "attention.out_proj.weight"):
        torch.testing.assert_close(dict(net.named_parameters())[name].grad, found[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("module, shape", [*LINEARS[:3], CONVS[0], CONVS[8], CONVS[10]], ids=str)
def test_ekfac_scales_by_the_second_moments_of_samples_gradients(module, shape):
    """Second step: basis of the first step's factors, eigenvalues from the explicit per-sample gradients."""
    torch.manual_seed(0)
    module, x = example(module, shape)
    a, g = rows_by_jacobian(module, x, getattr(module, "groups", 1))
    own = torch.einsum("bnso,bnsi->bnoi", g, a)
    factor_a, factor_g = gram(a) / (a.shape[1] * a.shape[2]), gram(g) / SAMPLES
    q_a, q_g = (torch.linalg.eigh(f).eigenvectors for f in (factor_a, factor_g))
    rotated = torch.einsum("bpo,bnpq,bqi->bnoi", q_g, own, q_a)
    scaled = rotated.mean(1) / (rotated.square().mean(1) + DAMPING)
    expected = torch.einsum("bpo,boi,bqi->bpq", q_g, scaled, q_a)
    kaisa = Kaisa(module, alone(), damping=DAMPING, kl_clip=None, method="ekfac", factor_every=1, inverse_every=9)
    for _ in range(2):
        module.zero_grad()
        mean_loss(module(x)).backward()
        kaisa.step()
    torch.testing.assert_close(kaisa.layers.found[0].gradient(), expected, rtol=1e-6, atol=1e-10)


def test_autocast_activations_are_summed_in_single_precision():
    net, x = net_and_words(dtype=torch.float32)
    exact, _ = preconditioned(net, x)
    kaisa = Kaisa(net, alone(), damping=DAMPING, kl_clip=None)
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    mean_loss(y.float()).backward()
    kaisa.step()
    found = torch.cat([p.grad.flatten() for p in net.parameters()])
    expected = torch.cat([g.flatten() for g in exact.values()])
    assert (found - expected).norm() <= 0.1 * expected.norm()
    assert all(average.g.dtype == torch.float32 for average in kaisa._averages.of.values())


def without_rows() -> list[tuple[nn.Module, torch.Tensor]]:
    return [
        (nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8)), torch.randn(0, 5)),
        (nn.LayerNorm((2, 4)), torch.randn(0, 3, 2, 4)),
        (nn.GroupNorm(2, 4), torch.randn(0, 4, 3)),
        (nn.Conv1d(4, 4, 3, padding=1), torch.randn(0, 4, 8)),
        (nn.Conv2d(4, 4, 3, padding=1), torch.randn(0, 4, 8, 8)),
        (nn.Conv2d(4, 4, 3, stride=2, groups=2), torch.randn(0, 4, 8, 8)),
        (nn.Embedding(5, 4), torch.zeros(0, 3, dtype=torch.int64)),
    ]


@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("module, x", without_rows(), ids=str)
def test_a_batch_without_rows_adds_nothing(module, x, method):
    """Between two batches with rows it changes neither factors nor gradients, and with none at all it is no error."""
    torch.manual_seed(0)
    rows = torch.randn(6, *x.shape[1:]) if x.is_floating_point() else torch.randint(0, 5, (6, *x.shape[1:]))
    settings = {"damping": DAMPING, "kl_clip": None, "method": method}
    expected, _ = preconditioned(copy.deepcopy(module), rows, **settings)
    for batches in ((x, rows, x), (x,)):
        model = copy.deepcopy(module)
        kaisa = Kaisa(model, alone(), **settings)
        for batch in batches:
            (mean_loss(model(batch)) if len(batch) else model(batch).sum() * 0).backward()
        kaisa.step(terms=6)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name] if len(batches) > 1 else torch.zeros_like(p))


@pytest.mark.parametrize("module", [nn.GroupNorm(2, 6), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)], ids=str)
def test_channels_last_changes_nothing(module):
    torch.manual_seed(0)
    x = torch.randn(5, 6, 4, 4)
    expected, _ = preconditioned(copy.deepcopy(module), x)
    last = x.to(memory_format=torch.channels_last).requires_grad_()  # without, torch itself crashes in GroupNorm
    found, _ = preconditioned(module.to(memory_format=torch.channels_last), last)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_evaluation_mode_is_preconditioned_too():
    """As where a network is fine-tuned with its norms and dropout at rest; without either, nothing changes."""
    net, x = net_and_words()
    training, _ = preconditioned(net.train(), x)
    evaluating, kaisa = preconditioned(net.eval(), x)
    assert kaisa.cosines["head"] < 0.999
    for name in training:
        torch.testing.assert_close(evaluating[name], training[name], rtol=1e-12, atol=0)


def test_a_pass_without_a_gradient_counts_no_samples():
    net, x = net_and_words()
    expected, _ = preconditioned(net, x)
    kaisa = Kaisa(net, alone(), damping=DAMPING, kl_clip=None)
    net.zero_grad()
    net(x[:5])  # a look at the outputs
    mean_loss(net(x)).backward()
    kaisa.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("terms", [None, 12])
def test_a_step_that_the_loop_gave_up_leaves_nothing(set_to_none, terms):
    """The loop drops the gradients, and with them goes what was recorded; gradients that add up stay."""
    net, x = net_and_words()
    expected, _ = preconditioned(net, x)
    kaisa = Kaisa(net, alone(), damping=DAMPING, kl_clip=None)
    net.zero_grad()
    with pytest.raises(ArithmeticError):
        (mean_loss(net(x[:7])) * float("inf")).backward()
        raise ArithmeticError
    with pytest.raises(ArithmeticError), kaisa.paused():
        raise ArithmeticError
    net.zero_grad(set_to_none=set_to_none)
    for part in x.split(6):
        (mean_loss(net(part)) / 2).backward()
    kaisa.step(terms=terms)
    assert kaisa.rejected == 0
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
