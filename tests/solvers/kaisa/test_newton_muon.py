"""Newton-Muon, and SOAP in K-FAC's bases: methods of weights whose factors are made of what goes through a layer."""

import copy

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import CheckpointError
from hpcopt.solvers.kaisa.orthogonal import orthogonalized
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.rounds import rounds
from tests.solvers.kaisa.test_layers import mean_loss
from tests.solvers.kaisa.test_muon import MIXED, WORDS, check_bad_gradients_leave_moments_alone, stepped

ROUNDS = rounds("jordan", 5)
ALWAYS = {"factor_every": 1, "inverse_every": 1}
KFAC_SOAP = {"method": "soap", "soap": {"factors": "kfac"}}


def trained(layer: nn.Module, inputs: list[torch.Tensor], **settings) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A lone weight's gradients, and what becomes of them; the targets are 0."""
    kaisa, raw, found = Kaisa(layer, alone(), **settings), [], []
    for x in inputs:
        layer.zero_grad()
        layer(x).square().mean(0).sum().backward()
        raw.append(layer.weight.grad.clone())
        kaisa.step()
        found.append(layer.weight.grad.clone())
    return raw, found


def draws(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("settings", [{}, {"max_size": 5}, {"max_size": 5, "large": "blocked"}], ids=str)
def test_newton_muon_is_its_formula(settings):
    """The average of A, its damped inverse on each gradient, then the average of these, orthogonalised. No bias is part
    of A.
    """
    layer = nn.Linear(6, 4).double()
    own = {"damping": 0.3, "momentum": 0.9, "nesterov": False, "scale": "shape"}
    raw, found = trained(layer, xs := draws(4, 9, 6), method="newton_muon", newton_muon=own, **ALWAYS, **settings)
    a, m = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    for t, (x, w, p) in enumerate(zip(xs, raw, found, strict=True)):
        a += (x.T @ x / len(x) - a) / (t + 1)
        kept = a.clone()
        if settings:
            kept = torch.diag(a.diagonal()) if len(settings) == 1 else torch.block_diag(a[:3, :3], a[3:, 3:])
        kept += 0.3 * a.trace() / 6 * torch.eye(6, dtype=torch.float64)
        m.lerp_(w @ torch.linalg.inv(kept), 0.1)
        torch.testing.assert_close(p, orthogonalized(m[None], ROUNDS)[0])


def test_groups_of_a_convolution_have_one_damping():
    """Of the mean eigenvalue of all groups' A."""
    layer, (x,) = nn.Conv1d(6, 4, 1, groups=2).double(), draws(1, 9, 6, 5)
    own = {"damping": 0.3, "momentum": 0.0, "nesterov": False, "scale": "shape"}
    (w,), (p,) = trained(layer, [x], method="newton_muon", newton_muon=own, **ALWAYS)
    rows = x.transpose(1, 2).reshape(45, 2, 3).transpose(0, 1)
    a = rows.mT @ rows / 45
    a += 0.3 * a.diagonal(dim1=1, dim2=2).mean() * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(p.view(2, 2, 3), orthogonalized(w.view(2, 2, 3) @ torch.linalg.inv(a), ROUNDS))


def test_newton_muon_with_much_damping_is_muon():
    """Then A's inverse, which is kept here, is a multiple of the identity, and drops out."""
    settings = {"momentum": 0.8}
    other, _ = stepped(alone(), 4, method="muon", muon=settings)
    one, kaisa = stepped(alone(), 4, method="newton_muon", newton_muon={**settings, "damping": 1e4}, factor_every=1)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert kaisa.layers.skipped == {"words": "no matrix for newton_muon", "norm": "no matrix for newton_muon"}


def test_an_input_of_zeros_gives_steps_as_muons():
    layer = nn.Linear(4, 3)
    kaisa = Kaisa(layer, alone(), method="newton_muon", **ALWAYS)
    layer(torch.zeros(5, 4)).sum().backward()
    layer.weight.grad.copy_(torch.ones(3, 4))
    kaisa.step()
    torch.testing.assert_close(layer.weight.grad, orthogonalized(torch.ones(1, 3, 4), ROUNDS)[0] * 0.4)
    assert layer.bias.grad.eq(5).all()


def test_soap_is_adam_in_kfacs_bases():
    """Bases of the first batch, that stay: of the inputs' mean square, and of the outputs' gradients'."""
    layer = nn.Linear(6, 4, bias=False).double()
    start, xs = layer.weight.detach().clone(), draws(5, 9, 6)
    own = {"factors": "kfac", "betas": (0.8, 0.7)}
    raw, found = trained(layer, xs, method="soap", soap=own, factor_every=1, inverse_every=100)
    y = xs[0] @ start.T
    q_a, q_g = torch.linalg.eigh(xs[0].T @ xs[0])[1], torch.linalg.eigh(y.T @ y)[1]
    adam = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = torch.optim.Adam([adam], lr=1.0, betas=(0.8, 0.7), eps=1e-8)
    assert not found[0].any()
    for w, p in zip(raw[1:], found[1:], strict=True):
        adam.grad, before = q_g.T @ w @ q_a, adam.detach().clone()
        optimizer.step()
        torch.testing.assert_close(p, q_g @ (before - adam.detach()) @ q_a.T, rtol=1e-4, atol=1e-4)


METHODS = [{"method": "newton_muon"}, {**KFAC_SOAP, "soap": {"factors": "kfac", "eps": 1.0}}]


@pytest.mark.parametrize("settings", METHODS, ids=str)
@pytest.mark.parametrize("size, fraction", [(2, 0.5), (3, 0.34), (4, 0.25)])
def test_any_grid_has_the_numbers_of_one_rank(size, fraction, settings):
    """Ranks each add up the same rows: other sums, the same means."""
    settings = {**settings, "factor_every": 1, "inverse_every": 2}
    expected, _ = stepped(alone(), 4, **settings)

    def program(t):
        model, kaisa = stepped(World(t), 4, fraction=fraction, **settings)
        assert kaisa.memory.held_bytes < whole or size == 1
        return model

    whole = Kaisa(copy.deepcopy(MIXED), alone(), **settings).memory.held_bytes
    for found in run_ranks(size, program):
        for p, q in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_a_checkpoint_goes_on_to_the_bit(settings):
    settings = {**settings, "factor_every": 1, "inverse_every": 2}
    expected, _ = stepped(alone(), 5, **settings)
    model, kaisa = stepped(alone(), 3, **settings)
    saved = copy.deepcopy((model.state_dict(), kaisa.state_dict(), [kaisa.rank_state_dict()]))
    found, _ = stepped(alone(), 2, saved, **settings)
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("settings", [*METHODS, {"method": "kl_shampoo"}], ids=str)
def test_gradients_that_are_not_finite_leave_moments_alone(settings):
    check_bad_gradients_leave_moments_alone(float("nan"), **settings, factor_every=1)


def test_factors_of_another_source_are_refused():
    _, kaisa = stepped(alone(), 1, **KFAC_SOAP)
    other = Kaisa(copy.deepcopy(MIXED), alone(), method="soap")
    with pytest.raises(CheckpointError, match=r"of activations, by soap, and soap takes gradients"):
        other.load_state_dict(kaisa.state_dict(), [kaisa.rank_state_dict()])


def test_embeddings_go_by_soap_in_kfacs_bases_and_norms_do_not():
    model, kaisa = stepped(alone(), 2, **KFAC_SOAP, **ALWAYS)
    assert kaisa.layers.found[0].name == "words"
    assert kaisa.layers.skipped == {"norm": "no matrix for soap"}
    assert not any(p.ndim == 1 for p in kaisa.whole)
    mean_loss(model(WORDS)).backward()
