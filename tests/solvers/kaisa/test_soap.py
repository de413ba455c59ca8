"""SOAP and Shampoo over ranks: against pytorch-optimizer's, against formulas, and bit for bit against one rank."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import CheckpointError
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.settings import KaisaSettings
from hpcopt.solvers.kaisa.shampoo import newton_roots, rounds
from tests.solvers.kaisa.test_muon import MIXED, stepped

ALWAYS = {"factor_every": 1, "inverse_every": 1}


def followed(ours: nn.Module, kaisa: Kaisa, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """What becomes of a lone weight's gradients."""
    found = []
    for g in gradients:
        ours.weight.grad = g.clone()
        kaisa.step()
        found.append(ours.weight.grad.clone())
    return found


def eigenvectors(factor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigh(factor)[1]


def draws(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(count)]


def test_soap_is_that_of_pytorch_optimizer():
    """There a basis is used a step after the gradient that it is of, as with ``inverse_lag = 1`` here. Averages begin
    at 0 there: the first one is made as large as here.
    """
    others = pytest.importorskip("pytorch_optimizer")
    gradients, p = draws(7, 6, 6), nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    theirs = others.SOAP([p], lr=1.0, betas=(0.9, 0.8), shampoo_beta=0.5, weight_decay=0.0, precondition_frequency=1)
    expected = []
    for g in gradients:
        p.grad, before = g.clone(), p.detach().clone()
        theirs.step()
        expected.append(before - p.detach())
        if len(expected) == 1:
            for factor in theirs.state[p]["GG"]:
                factor.mul_(2)
    layer = nn.Linear(6, 6, bias=False).double()
    kaisa = Kaisa(layer, alone(), method="soap", soap={"betas": (0.9, 0.8)}, factor_decay=0.5, inverse_lag=1, **ALWAYS)
    for found, p in zip(followed(layer, kaisa, gradients), expected, strict=True):
        torch.testing.assert_close(found, p, rtol=1e-5, atol=1e-6)  # their bases are rounded to float32


@pytest.mark.parametrize("inputs, size, sides", [(4, 100, "both"), (7, 5, "both"), (4, 9, "short"), (8, 9, "short")])
@pytest.mark.parametrize("turned", [False, True])
def test_soap_is_adam_in_eigenbases(inputs, size, sides, turned):
    """A basis of the first gradients' factors, exact, that stays; a side of more than max_size has none, nor has one
    that is twice as long as the other, if that is asked for.
    """
    gradients = [g.T.contiguous() if turned else g for g in draws(5, 4, inputs)]
    rows, columns = gradients[0].shape
    layer = nn.Linear(columns, rows, bias=False).double()
    own = {"betas": (0.8, 0.7), "sides": sides}
    settings = {"factor_every": 1, "inverse_every": 100, "max_size": size, "soap": own}
    kaisa = Kaisa(layer, alone(), method="soap", **settings)

    def basis(factor: torch.Tensor) -> torch.Tensor:
        long = sides == "short" and len(factor) == 8
        return torch.eye(len(factor), dtype=factor.dtype) if long or len(factor) > size else eigenvectors(factor)

    q_g, q_a = basis(gradients[0] @ gradients[0].T), basis(gradients[0].T @ gradients[0])
    adam = nn.Parameter(torch.zeros(rows, columns, dtype=torch.float64))
    optimizer = torch.optim.Adam([adam], lr=1.0, betas=(0.8, 0.7), eps=1e-8)
    first, *rest = followed(layer, kaisa, gradients)
    assert not first.any()
    for found, g in zip(rest, gradients[1:], strict=True):
        adam.grad, before = q_g.T @ g @ q_a, adam.detach().clone()
        optimizer.step()
        back = q_g @ (before - adam.detach()) @ q_a.T
        torch.testing.assert_close(found, back, rtol=1e-4, atol=1e-4)


def test_the_first_moment_follows_the_basis():
    """Turned at every refresh, it is the plain average of the gradients: with beta2 = 0 and beta1 near 1 it shows."""
    gradients = draws(4, 5, 5)
    layer = nn.Linear(5, 5, bias=False).double()
    kaisa = Kaisa(layer, alone(), method="soap", soap={"betas": (0.9, 0.9)}, **ALWAYS)
    followed(layer, kaisa, gradients)
    kaisa._carried.leave()
    m = torch.zeros(5, 5, dtype=torch.float64)
    for g in gradients[1:]:
        m.lerp_(g, 0.1)
    torch.testing.assert_close(kaisa._carried.of(0)[:25].view(5, 5), m)


@pytest.mark.parametrize("roots", ["eigen", "newton"])
def test_shampoo_has_the_direction_of_pytorch_optimizers(roots):
    """There the factors are sums, not means: P differs by a number, which grafting takes away."""
    others = pytest.importorskip("pytorch_optimizer")
    gradients, p = draws(5, 4, 6), nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    theirs = others.Shampoo([p], lr=1.0, matrix_eps=0.0)
    layer = nn.Linear(6, 4, bias=False).double()
    settings = {"method": "shampoo", "shampoo": {"epsilon": 1e-13, "roots": roots}, "factor_decay": 0.9999, **ALWAYS}
    kaisa = Kaisa(layer, alone(), **settings)
    for t, (found, g) in enumerate(zip(followed(layer, kaisa, gradients), gradients, strict=True)):
        p.grad, before = g.clone(), p.detach().clone()
        theirs.step()
        step = before - p.detach()
        if t >= 2:  # before, the larger factor is singular
            torch.testing.assert_close(found, step * (g.norm() / step.norm()), rtol=1e-3, atol=1e-4)


def test_shampoo_is_a_formula_with_diagonals_and_blocks():
    (g,) = draws(1, 4, 6)
    epsilon = 0.01

    def root(f: torch.Tensor) -> torch.Tensor:
        d, q = torch.linalg.eigh(f + epsilon * f.trace() * torch.eye(len(f), dtype=f.dtype))
        return q * d**-0.25 @ q.T

    a, left = g.T @ g, root(g @ g.T)
    diagonal = torch.diag((a.diagonal() + epsilon * a.trace()) ** -0.25)
    blocks = torch.block_diag(root(a[:3, :3]), root(a[3:, 3:]))
    for settings, right in (({}, root(a)), ({"max_size": 5}, diagonal), ({"max_size": 5, "large": "blocked"}, blocks)):
        layer = nn.Linear(6, 4, bias=False).double()
        settings = {**settings, "shampoo": {"epsilon": epsilon}, "graft": False}
        (found,) = followed(layer, Kaisa(layer, alone(), method="shampoo", **settings), [g])
        torch.testing.assert_close(found, left @ g @ right)


@pytest.mark.parametrize("settings", [{}, {"roots": "newton"}, {"max_size": 5}], ids=str)
def test_kl_shampoo_is_its_formulas(settings):
    """Each factor is of gradients whitened by the other as it was; a diagonal stays one."""
    epsilon, momentum = 1e-4, 0.8
    gradients, eye = draws(6, 4, 6), torch.eye(6, dtype=torch.float64)

    def power(f: torch.Tensor, p: float) -> torch.Tensor:
        d, q = torch.linalg.eigh(f + epsilon * f.trace() * torch.eye(len(f), dtype=f.dtype))
        return q * d**p @ q.T

    def kept(a: torch.Tensor) -> torch.Tensor:
        return a * eye if "max_size" in settings else a

    layer = nn.Linear(6, 4, bias=False).double()
    own = {"epsilon": epsilon, "momentum": momentum, "roots": settings.get("roots", "eigen")}
    others = {"max_size": settings.get("max_size", 100), **ALWAYS}
    found = followed(layer, Kaisa(layer, alone(), method="kl_shampoo", kl_shampoo=own, **others), gradients)
    m = torch.zeros(4, 6, dtype=torch.float64)
    for t, (w, p) in enumerate(zip(gradients, found, strict=True), 1):
        if t == 1:
            r = w.square().mean().sqrt()
            a, g = r * eye, r * torch.eye(4, dtype=torch.float64)
        else:
            new_a, new_g = kept(w.T @ power(g, -1) @ w) / 4, w @ power(a, -1) @ w.T / 6
            a, g = a.lerp(new_a, 1 / t), g.lerp(new_g, 1 / t)
        m.lerp_(w, 1 - momentum)
        torch.testing.assert_close(p, power(g, -0.5) @ m @ power(a, -0.5) / (1 - momentum**t), rtol=1e-6, atol=1e-6)


def test_kl_shampoo_whitens():
    """Gradients of a Kronecker covariance become ones of unit variance, of which no direction is larger."""
    left, right = torch.diag(torch.tensor([1.0, 10.0, 100.0])).double(), torch.diag(torch.tensor([1.0, 30.0])).double()
    gradients = [left @ w @ right for w in draws(500, 3, 2)]
    layer, settings = nn.Linear(2, 3, bias=False).double(), {"momentum": 0.0, "epsilon": 1e-12}
    kaisa = Kaisa(layer, alone(), method="kl_shampoo", kl_shampoo=settings, factor_decay=0.97, **ALWAYS)
    found = torch.stack(followed(layer, kaisa, gradients)[250:])
    torch.testing.assert_close(found.square().mean(0), torch.ones(3, 2, dtype=torch.float64), rtol=0, atol=0.3)


@pytest.mark.parametrize("roots", ["eigen", "newton"])
@pytest.mark.parametrize("max_size", [100, 5])
def test_kl_shampoo_begins_with_the_first_gradient_that_is_not_0(roots, max_size):
    """As below an output layer that begins as 0. Until there are roots nothing moves."""
    own, every = {"roots": roots, "momentum": 0.0}, {"factor_every": 1, "inverse_every": 2, "max_size": max_size}

    def steps(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        layer = nn.Linear(6, 4, bias=False)
        kaisa = Kaisa(layer, alone(), method="kl_shampoo", kl_shampoo=own, **every)
        return followed(layer, kaisa, gradients)

    zero, gradients = torch.zeros(4, 6), [g.float() for g in draws(20, 4, 6)]
    found = steps([zero, *gradients])
    assert not found[0].any() and not found[1].any()
    sizes = torch.stack([p.square().mean().sqrt() for p in found[2:]])
    assert sizes.min() > 0.1 and sizes.max() < 10, "of Adam's size"


@pytest.mark.parametrize("power", [2, 4])
def test_newtons_roots_are_those_of_eigenvalues(power):
    q = torch.linalg.qr(draws(1, 2, 9, 9)[0]).Q
    d = torch.logspace(-6, 0, 9, dtype=torch.float64)
    found = newton_roots((q * d) @ q.transpose(1, 2), rounds(1e-6, power), power)
    expected = (q * d ** (-1 / power)) @ q.transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


SETTINGS = [
    {"method": "soap"},
    {"method": "soap", "soap": {"sides": "short"}},
    {"method": "shampoo"},
    {"method": "soap", "inverse_lag": 1},
    {"method": "kl_shampoo"},
    {"method": "shampoo", "methods": {"conv": "muon", "Embedding": "soap"}, "max_size": 6},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size, fraction", [(2, 0.5), (3, 0.34), (3, 1.0), (4, 0.25), (4, 0.5)])
def test_any_grid_has_the_bits_of_one_rank(size, fraction, settings):
    settings = {**settings, "factor_every": 1, "inverse_every": 2}
    expected, _ = stepped(alone(), 5, **settings)
    for found, _ in run_ranks(size, lambda t: stepped(World(t), 5, fraction=fraction, **settings)):
        assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("method", ["soap", "shampoo", "kl_shampoo"])
def test_a_checkpoint_goes_on_at_other_ranks_to_the_bit(method):
    """Also with a refresh under way."""
    settings = {"method": method, "factor_every": 1, "inverse_every": 2, "inverse_lag": 1}
    expected, _ = stepped(alone(), 6, **settings)

    def half(t):
        model, kaisa = stepped(World(t), 3, fraction=0.5, **settings)
        return copy.deepcopy((model.state_dict(), kaisa.state_dict(), kaisa.rank_state_dict()))

    halves = run_ranks(4, half)
    saved = (*halves[0][:2], [part for *_, part in halves])
    for size, fraction in ((1, 1.0), (3, 0.34)):
        for found, _ in run_ranks(size, lambda t, f=fraction: stepped(World(t), 3, saved, fraction=f, **settings)):
            assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_checkpoint_of_other_sides_is_refused():
    _, kaisa = stepped(alone(), 1, method="soap")
    other = Kaisa(copy.deepcopy(MIXED), alone(), method="soap", soap={"sides": "short"})
    with pytest.raises(CheckpointError, match=r"sides='both'.*and now has.*sides='short'"):
        other.load_state_dict(kaisa.state_dict(), [kaisa.rank_state_dict()])
    with pytest.raises(ValidationError, match='sides = "short" is for factors of gradients'):
        KaisaSettings(method="soap", soap={"sides": "short", "factors": "kfac"})


def test_factors_of_another_source_are_refused():
    _, kaisa = stepped(alone(), 1, method="shampoo")
    other = Kaisa(copy.deepcopy(MIXED), alone(), method="cholesky")
    with pytest.raises(CheckpointError, match=r"of gradients, by shampoo, and cholesky takes activations.*method = "):
        other.load_state_dict(kaisa.state_dict(), [kaisa.rank_state_dict()])


def test_a_method_of_the_same_factors_goes_on_with_them():
    """SOAP's moments begin anew; what Shampoo kept is made anew of the factors."""
    model, kaisa = stepped(alone(), 3, method="shampoo", **ALWAYS)
    other = Kaisa(model, alone(), method="soap", factor_every=100, inverse_every=100)
    other.load_state_dict(kaisa.state_dict(), [kaisa.rank_state_dict()])
    assert not any(other._carried.of(i).any() for i in range(len(other.layers.found)))
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    other.step()
    assert all(p.grad.isfinite().all() for p in other.whole)
    assert all(other._carried.of(i)[-1] == 1 for i in range(len(other.layers.found)))


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))], ids=str)
def test_decays_are_below_one(betas):
    with pytest.raises(ValidationError, match="betas"):
        KaisaSettings(method="soap", soap={"betas": betas})
