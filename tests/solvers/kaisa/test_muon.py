"""Muon over ranks: against singular values, against torch's, and bit for bit against one rank."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError
from hpcopt.optim import AdamWConfig, SgdConfig
from hpcopt.solvers.kaisa import products
from hpcopt.solvers.kaisa.orthogonal import orthogonalized
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from hpcopt.solvers.kaisa.rounds import BAND, minimax, rounds
from hpcopt.solvers.kaisa.solver import KaisaConfig
from tests.solvers.kaisa.test_layers import mean_loss
from tests.solvers.kaisa.test_solver import PROBLEM, STEPS, Trial

JORDAN = rounds("jordan", 5)


def gone_through(s: torch.Tensor, course) -> torch.Tensor:
    """What becomes of singular values, shape (batch, n)."""
    s = s / s.norm(dim=1, keepdim=True)
    s = s / s.pow(4).sum(1, keepdim=True) ** 0.25 if course.tight else s
    for a, b, c in course.polynomials:
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("course", [JORDAN, rounds("minimax", 3), rounds("minimax", 1)], ids=["jordan", "three", "one"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    "shape", [(1, 5, 5), (1, 80, 300), (1, 270, 600), (1, 600, 270), (1, 460, 270), (3, 4, 6), (1, 1, 7)], ids=str
)
def test_singular_values_go_by_the_polynomials(shape, dtype, tolerance, course):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = gone_through(s, course)
    found = orthogonalized(x.to(dtype), course).double()
    torch.testing.assert_close(found, u * s.unsqueeze(1) @ v, rtol=0, atol=tolerance)
    assert ((s > 0.6) & (s < 1.31)).all() or len(course.polynomials) == 1
    assert not orthogonalized(torch.zeros(shape), course).any()


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_minimax_rounds_bring_as_much_as_they_can_near_one(iterations):
    """From the least value that they lift into the band on, they are as far from 1 as it is wide at so many places, on
    both sides in turn, that no other polynomials could be nearer at all of them.
    """
    x = torch.logspace(-6, 0, 200_001, dtype=torch.float64)
    y = x
    for a, b, c in minimax(iterations):
        y = a * y + b * y**3 + c * y**5
    inside = x >= x[(y - 1).abs() <= BAND][0]
    distance = (y - 1)[inside]
    assert float(distance.abs().max()) == pytest.approx(BAND, abs=2e-3)
    turns = distance[distance.abs() > BAND - 2e-3].sign()
    assert int((turns[1:] != turns[:-1]).sum()) == 3**iterations


def test_wide_matrices_with_tiny_singular_values_are_not_spoilt_by_their_gram_matrix():
    """Seven decades, of which a Gram matrix in float32 sees half."""
    u, v = (torch.linalg.qr(x).Q for x in torch.randn(2, 200, 50, dtype=torch.float64).unbind())
    u, s = torch.linalg.qr(u[:50]).Q, torch.logspace(-7, 0, 50, dtype=torch.float64)
    x, (s,) = (u * s @ v.T).unsqueeze(0), gone_through(s.unsqueeze(0), JORDAN)
    for found in (orthogonalized(x.float(), JORDAN), orthogonalized(x.float().expand(2, -1, -1), JORDAN)[:1]):
        torch.testing.assert_close(found[0].double(), u * s @ v.T, rtol=0, atol=1e-3)


class Mixed(nn.Module):
    """A plain map, a wider one, a convolution in groups, attention, and what Muon leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(7, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 6, 3, groups=2)
        self.head = nn.Linear(6, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.words(x))
        h = h + self.attention(h, h, h, need_weights=False)[0]
        out: torch.Tensor = self.head(self.conv(h.transpose(1, 2)).mean(2))
        return out


torch.manual_seed(3)
MIXED, WORDS = Mixed(), torch.randint(0, 7, (10, 5))


def stepped(world: World, steps: int = 3, saved: tuple | None = None, **settings) -> tuple[nn.Module, Kaisa]:
    """Steps of which all ranks have the same gradients to the bit, for they look at the same batch."""
    model = copy.deepcopy(MIXED)
    kaisa = Kaisa(model, world, **settings)
    if saved is not None:
        model.load_state_dict(saved[0])
        kaisa.load_state_dict(*saved[1:])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        mean_loss(model(WORDS.roll(kaisa.steps, 1))).backward()
        kaisa.step()
        optimizer.step()
    return model, kaisa


def test_every_matrix_goes_by_its_own_momentum():
    model, kaisa = stepped(alone(), 1, method="muon", muon={"nesterov": False, "scale": "shape"}, skip=["^head"])
    assert [layer.name for layer in kaisa.layers.found] == ["attention.in_proj", "attention.out_proj", "conv"]
    assert kaisa.layers.skipped == {"words": "no matrix for muon", "norm": "no matrix for muon", "head": "skip"}
    assert {id(p) for p in kaisa.whole} == {
        id(p) for p in (model.attention.in_proj_weight, model.attention.out_proj.weight, model.conv.weight)
    }
    before = copy.deepcopy(MIXED)
    mean_loss(before(WORDS)).backward()
    for now, then, batch in (
        (model.attention.in_proj_weight, before.attention.in_proj_weight, 3),
        (model.conv.weight, before.conv.weight, 2),
    ):
        w = then.grad.reshape(batch, -1, then[0].numel())
        expected = orthogonalized(w * 0.1, JORDAN) * max(1, w.shape[1] / w.shape[2]) ** 0.5
        torch.testing.assert_close(now.grad.view_as(w), expected)
    torch.testing.assert_close(model.head.weight.grad, before.head.weight.grad)


class Spelling(nn.Module):
    """Words, a convolution over them, an inner map, and an output for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.conv = nn.Embedding(7, 8), nn.Conv1d(8, 6, 3)
        self.inner, self.out = nn.Linear(6, 7), nn.Linear(7, 7)


def test_the_kind_of_a_model_says_by_which_method_a_layer_goes():
    def methods(model: nn.Module, **settings) -> dict[str, str]:
        layers = Kaisa(copy.deepcopy(model), alone(), method="auto", **settings).layers
        return {**{layer.name: layer.method for layer in layers.found}, **layers.skipped}

    pictures = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 7))
    assert methods(pictures) == {"0": "newton_muon", "1": "no matrix for newton_muon", "3": "newton_muon"}
    plain = nn.Sequential(nn.Linear(9, 4), nn.LayerNorm(4), nn.Linear(4, 7))
    assert methods(plain) == {"0": "low_rank", "1": "cholesky", "2": "low_rank"}
    assert methods(plain, inverse_dtype="bfloat16") == {"0": "muon", "1": "no matrix for muon", "2": "muon"}
    words = {"words": "no matrix for muon", "norm": "no matrix for muon", "conv": "newton_muon", "head": "muon"}
    assert methods(MIXED) == {**words, "attention.in_proj": "muon", "attention.out_proj": "muon"}
    words = {"words": "no matrix for muon", "conv": "newton_muon", "inner": "muon", "out": "the output layer"}
    assert methods(Spelling()) == words
    assert methods(Spelling(), methods={"out": "soap"}) == {**words, "out": "soap"}


def test_rows_of_heads_are_matrices_of_their_own():
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    kaisa = Kaisa(attention, alone(), method="muon", muon={"nesterov": False, "scale": "shape"}, heads={"": 2})
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    attention(x, x, x)[0].square().sum().backward()
    raw = copy.deepcopy([p.grad for p in (attention.in_proj_weight, attention.out_proj.weight)])
    kaisa.step()
    now = attention.in_proj_weight.grad, attention.out_proj.weight.grad
    for found, w, batch in zip(now, raw, (6, 1), strict=True):
        expected = [orthogonalized(part.unsqueeze(0) * 0.1, JORDAN)[0] for part in w.chunk(batch)]
        torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"heads": {"conv": 4}}, "the 6 rows of conv do not make 8 equal heads"),
        ({"heads": {"attention": 3}}, "the 8 rows of attention do not make 3 equal heads"),
        ({"heads": {"attention": 2}, "methods": {"attention": "cholesky"}}, "attention goes by cholesky"),
        ({"heads": {"conv2": 2}}, 'heads: "conv2" is found in the name and the class of no module'),
    ],
    ids=str,
)
def test_heads_that_cannot_be_are_refused(settings, message):
    with pytest.raises(JobError, match=message):
        stepped(alone(), 1, method="muon", **settings)


@pytest.mark.parametrize("scale, adjust", [("adamw", "match_rms_adamw"), ("shape", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_trajectory_is_that_of_torchs_muon(scale, adjust, nesterov, monkeypatch):
    monkeypatch.setattr(products, "narrow_is_quick", lambda device: True)  # torch's multiplies in bfloat16 everywhere
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(12, 40, bias=False), nn.Tanh(), nn.Linear(40, 5, bias=False))
    theirs, start, x = copy.deepcopy(ours), copy.deepcopy(ours), torch.randn(30, 12)
    settings = {"nesterov": nesterov, "momentum": 0.95}
    muon = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.3, adjust_lr_fn=adjust, **settings)
    kaisa = Kaisa(ours, alone(), method="muon", muon={**settings, "scale": scale}, inverse_dtype="bfloat16")
    sgd = torch.optim.SGD(kaisa.whole, lr=0.02, weight_decay=0.3)
    for _ in range(6):
        for model, optimizer in ((ours, sgd), (theirs, muon)):
            optimizer.zero_grad()
            mean_loss(model(x)).backward()
            if model is ours:
                kaisa.step()
            optimizer.step()
    for a, b, c in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        assert (a - b).norm() < 0.02 * (b - c).norm()  # products are rounded to 8 bits


METHODS = [
    {"method": "muon", "heads": {"attention": 2}},
    {"method": "muon", "methods": {"Linear": "cholesky", "conv": "eigen"}},
]


@pytest.mark.parametrize("settings", METHODS, ids=str)
@pytest.mark.parametrize("size, fraction", [(2, 0.5), (3, 0.34), (3, 1.0), (4, 0.25), (4, 0.5)])
def test_any_grid_has_the_bits_of_one_rank(size, fraction, settings):
    settings = {**settings, "factor_every": 1, "inverse_every": 2, "damping": 0.1}
    expected, _ = stepped(alone(), **settings)

    def program(t):
        model, kaisa = stepped(World(t), fraction=fraction, **settings)
        return model, kaisa.memory.held_bytes

    for found, _ in run_ranks(size, program):
        if "methods" in settings:  # ranks each add up the same rows: other sums, the same means
            for p, q in zip(found.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(p, q)
        else:
            assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))


def check_bad_gradients_leave_moments_alone(bad: float, **settings) -> None:
    """One value of all is not finite: nothing moves, and gradients stay as they are."""
    model, kaisa = stepped(alone(), 2, **settings)
    before = copy.deepcopy(kaisa.rank_state_dict())
    for p in model.parameters():
        p.grad.fill_(1.0)
    model.conv.weight.grad[0, 0, 0] = bad
    kaisa.step()
    after = kaisa.rank_state_dict()
    assert all(torch.equal(before[name]["moments"], after[name]["moments"]) for name in before)
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert (~model.conv.weight.grad.isfinite()).sum() == 1


def test_gradients_that_are_not_finite_leave_the_momentum_alone():
    check_bad_gradients_leave_moments_alone(float("inf"), method="muon")


def test_a_job_has_a_rate_for_whole_steps_and_another_optimizer_for_the_rest():
    config = KaisaConfig(method="muon", step_lr=0.03, step_decay=0.1, optimizer=AdamWConfig(lr=0.01))
    trial = Trial(config, PROBLEM)
    (expected,) = [run.parameters for run in trial.run(1, STEPS, total=STEPS)]
    for run in Trial(config.model_copy(update={"fraction": 0.5}), PROBLEM).run(3, STEPS, total=STEPS):
        torch.testing.assert_close(run.parameters, expected, rtol=1e-8, atol=1e-10)
    optimizer = config.optimizer_of(MIXED)
    assert [type(part).__name__ for part in optimizer.parts] == ["AdamW", "SGD"]
    assert optimizer.param_groups[-1]["lr_factor"] == pytest.approx(3)
    assert optimizer.param_groups[-1]["weight_decay"] == 0.1
    moved = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert moved == sum(p.numel() for p in MIXED.parameters())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"clip_norm": 1.0}, "clip_norm would shorten the steps of muon"),
        ({"damping_every": 2}, "damping_every measures K-FAC's model"),
        ({"methods": {"(": "muon"}}, "is no pattern"),
        ({"heads": {"(": 2}}, "is no pattern"),
        ({"heads": {"attention": 0}}, "greater than or equal to 1"),
        ({"methods": {"^head": "ekfac"}}, "stands alone"),
        ({"muon": {"momentum": 1.5}}, "less than 1"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        KaisaConfig(**{"method": "muon", "optimizer": SgdConfig(lr=0.1), **settings})


def test_a_pattern_that_no_module_has_is_refused():
    with pytest.raises(JobError, match='methods: "conv2" is found in the name and the class of no module'):
        stepped(alone(), 1, methods={"Conv1d": "muon", "conv2": "muon"})
    with pytest.raises(JobError, match="conv2"):
        KaisaConfig(methods={"conv2": "muon"}, optimizer=SgdConfig(lr=0.1)).optimizer_of(MIXED)


@pytest.mark.parametrize("method", ["cholesky", "muon", "soap", "shampoo"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_empty_weight_is_left_alone(method):
    net = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3), nn.Linear(3, 2))
    kaisa = Kaisa(net, alone(), method=method)
    assert kaisa.layers.skipped == {"0": "it has no values", "1": "it has no values"}
    net(torch.ones(5, 4)).sum().backward()
    kaisa.step()
