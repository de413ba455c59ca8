"""DeepFacto: non-negative throughout, blind to labels at inference, the same on other ranks and after a restart."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import CheckpointError, JobError
from hpcopt.exchange import RingConfig
from hpcopt.models.disentangling import reconstruction_error
from hpcopt.models.nmf import FactorMlpConfig
from hpcopt.optim.first_order import AdamWConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.block_admm.deepfacto import DeepFacto, DeepFactoConfig
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.testing.problem import flat
from tests.solvers.block_admm.problem import LOSS, batches

STEPS = 120
CONFIG = DeepFactoConfig(optimizer=AdamWConfig(lr=1e-2, weight_decay=0), plain=0.5)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return FactorMlpConfig(hidden=(24, 16), factors=6).build((6,), 3)


def solver(config=CONFIG, model=None, world=None) -> DeepFacto:
    torch.manual_seed(1)
    return config.build(
        Task(model or network(), LOSS), Context(exchange=RingConfig(), world=world or alone(), steps=STEPS)
    )


def data(steps, rank=0, size=1):
    return batches(steps, rank, size, dtype=torch.float32)


def scores(s: DeepFacto) -> tuple[float, float]:
    x, y = (torch.cat([batch.tensors[name] for batch in data(4)]) for name in ("x", "y"))
    with torch.no_grad():
        h = s._f(x)
        return float((s.model(x).argmax(1) == y).double().mean()), reconstruction_error(h, s._nmf(h), s._nmf.basis)


def test_it_learns_features_that_the_factors_explain():
    s = solver()
    errors = []
    for batch in data(STEPS):
        error = s.step(batch).scalars.get("reconstruction_error")
        errors.append(error)
        assert s._nmf.basis.min() >= 0
        assert float(torch.linalg.vector_norm(s._nmf.basis, dim=1).max()) <= 1 + 1e-6
    accuracy, error = scores(s)
    assert accuracy > 0.9
    assert error < 0.5 * errors[60]  # against the first factorisation of the plainly trained features


def test_the_joint_steps_remember_no_plain_gradient():
    """The first step of Adam on a new objective, of gradient g, is lr |g| / (|g| + eps) long, whatever the plain
    gradients were.
    """
    s = solver()
    every = data(STEPS)
    for batch in every[: s._plain_steps]:
        s.step(batch)
    before = flat(s._f).clone()
    s.step(every[s._plain_steps])
    moved = (flat(s._f) - before).abs()
    gradient = torch.cat([p.grad.reshape(-1) for p in s._f.parameters()]).abs()
    adam = CONFIG.optimizer
    torch.testing.assert_close(moved, adam.lr * gradient / (gradient + adam.eps), rtol=1e-4, atol=1e-7)
    assert float((moved > 0.99 * adam.lr).double().mean()) > 0.9


def test_the_head_adds_its_own_gradient_to_that_of_the_features():
    (*plain, joint), gradients = data(STEPS // 2 + 1), []
    for weight in (0.0, 2.0):
        s = solver(CONFIG.model_copy(update={"head": weight}))
        for batch in plain:
            s.step(batch)
        loss = LOSS.criterion(s._head(s._f(joint.tensors["x"])), joint)
        own = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(s._f.parameters()))])
        s.step(joint)
        gradients.append(torch.cat([p.grad.reshape(-1) for p in s._f.parameters()]))
    torch.testing.assert_close(gradients[1] - gradients[0], 2 * own, rtol=1e-3, atol=1e-5)
    assert own.norm() > 1e-3


def test_inference_sees_no_label():
    s = solver()
    for batch in data(STEPS):
        s.step(batch)
    batch = data(1)[0]
    before = s.model(batch.tensors["x"])
    batch.tensors["y"].random_(3)
    assert torch.equal(s.model(batch.tensors["x"]), before)
    known = s._codes(s._f(batch.tensors["x"]).detach(), s._nmf(s._f(batch.tensors["x"])), batch)
    assert not torch.equal(known, s._nmf(s._f(batch.tensors["x"])))  # those of training do know it


def test_steps_on_the_codes_lower_what_they_minimise():
    s = solver()
    for batch in data(80):
        s.step(batch)
    batch = data(81)[80]
    with torch.no_grad():
        h = s._f(batch.tensors["x"])
        free = s._nmf(h)
        known = s._codes(h, free, batch)

        def value(code):
            loss = F.cross_entropy(s._g(code), batch.tensors["y"], reduction="sum")
            return float(10.0 * loss + 0.5 * (h - code @ s._nmf.basis).square().sum())

        assert known.min() >= 0
        assert value(known) < value(free)


@pytest.mark.parametrize("first", [20, 60, 90])
def test_a_restart_continues_bit_for_bit(first):
    straight, before = solver(), solver()
    for batch in data(100):
        straight.step(batch)
    for batch in data(first):
        before.step(batch)
    after = solver()
    after.load_state_dict(copy.deepcopy(before.state_dict()), [copy.deepcopy(before.rank_state_dict())])
    for batch in data(100)[first:]:
        after.step(batch)
    assert torch.equal(flat(straight.model), flat(after.model))
    assert torch.equal(straight._nmf.basis, after._nmf.basis)
    assert torch.equal(straight._a, after._a)


def test_ranks_agree_and_learn():
    models = [network() for _ in range(3)]

    def program(transport):
        s = CONFIG.build(
            Task(models[transport.rank], LOSS), Context(exchange=RingConfig(), world=World(transport), steps=STEPS)
        )
        for batch in data(STEPS, transport.rank, 3):
            s.step(batch)
        return s

    solvers = run_ranks(3, program)
    for s in solvers:
        assert torch.equal(flat(s.model), flat(solvers[0].model))
        assert torch.equal(s._nmf.basis, solvers[0]._nmf.basis)
    assert scores(solvers[0])[0] > 0.9


def test_joint_steps_of_ranks_are_those_of_one_process():
    """Without the first factorisation, which is made from rank 0's own samples."""
    models = [network() for _ in range(3)]

    def after_joint_steps(model, world):
        s = CONFIG.build(Task(model, LOSS), Context(exchange=RingConfig(), world=world, steps=STEPS))
        s._plain_steps, s._step = 0, 1
        for batch in data(10, world.rank, world.size):
            s.step(batch)
        return flat(model)

    expected = after_joint_steps(network(), alone())
    for found in run_ranks(3, lambda transport: after_joint_steps(models[transport.rank], World(transport))):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(JobError, match="factor_mlp"):
        solver(model=nn.Sequential(nn.Linear(6, 3)))
    with pytest.raises(JobError, match="function of the model's outputs"):
        CONFIG.build(Task(network(), lambda model, batch: model(batch)), Context(exchange=RingConfig(), steps=STEPS))
    state = solver().state_dict()
    torch.manual_seed(0)
    other = FactorMlpConfig(hidden=(24, 16), factors=5).build((6,), 3)
    with pytest.raises(CheckpointError, match="does not fit"):
        solver(model=other).load_state_dict(state, [{}])


def test_a_restart_from_a_checkpoint_file_continues_bit_for_bit(tmp_path):
    straight, first = solver(), solver()
    for batch in data(80):
        straight.step(batch)
    for batch in data(70):
        first.step(batch)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.begin(70)
    checkpoints.write_part(70, "shared", first.state_dict())
    checkpoints.write_part(70, "rank00000", first.rank_state_dict())
    checkpoints.commit(70, ["shared", "rank00000"])
    second = solver()
    second.load_state_dict(checkpoints.read_part(70, "shared"), [checkpoints.read_part(70, "rank00000")])
    for batch in data(80)[70:]:
        second.step(batch)
    assert torch.equal(flat(straight.model), flat(second.model))
    assert torch.equal(straight._nmf.basis, second._nmf.basis)
